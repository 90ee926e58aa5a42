"""Weights that a model uses in functions get the rows, the blame and the cure that modules get."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchnotes import SignalMonitor, probe
from torchnotes.diagnostics.verdict import judge
from torchnotes.init import calibrate_, initialize_

WIDTH = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Called(nn.Module):
    """A deep ReLU net without a module in it, whose products are written in one of several ways."""

    def __init__(self, form: str, std: float, depth: int = 4) -> None:
        super().__init__()
        self.form = form
        generator = seeded()
        self.w = nn.ParameterList()
        self.b = nn.ParameterList()
        for _ in range(depth):
            weight = torch.randn(2 * WIDTH, WIDTH, generator=generator)[:WIDTH] * std
            self.w.append(nn.Parameter(weight.T.contiguous() if form == "x @ v" else weight))
            self.b.append(nn.Parameter(0.1 * torch.randn(WIDTH, generator=generator)))

    def forward(self, x: Tensor) -> Tensor:
        for w, b in zip(self.w, self.b, strict=True):
            if self.form == "linear":
                z = F.linear(x, w, bias=b)
            elif self.form == "x @ w.T":
                z = x @ w.T + b
            else:
                z = torch.matmul(x, w) + b
            x = F.relu(z)
        return x


def twin_of(net: Called) -> nn.Sequential:
    layers = []
    for w, b in zip(net.w, net.b, strict=True):
        layer = nn.Linear(WIDTH, WIDTH)
        layer.weight.data, layer.bias.data = (w.T if net.form == "x @ v" else w).data, b.data
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("form", ["linear", "x @ w.T", "x @ v"])
def test_a_call_is_measured_as_the_module_would_be(form: str) -> None:
    net, x = Called(form, std=WIDTH**-0.5), torch.randn(32, WIDTH, generator=seeded(1))
    called, twin = probe(net, x), probe(twin_of(net), x)
    found, wanted = ([layer for layer in report.layers if layer.role == "weight"] for report in (called, twin))
    assert [layer.label for layer in found] == ["w.0", "w.1", "w.2", "w.3"]
    for a, b in zip(found, wanted, strict=True):
        assert (a.depth, a.fan_in, a.fan_out) == (b.depth, b.fan_in, b.fan_out)
        if form == "linear":  # else the bias is added by a function of its own, behind what is measured
            assert (a.activation, a.gradient, a.bias) == (b.activation, b.gradient, b.bias)
        assert a.weight is not None
        assert b.weight is not None
        assert a.weight.rms == pytest.approx(b.weight.rms)
        assert a.weight_gradient is not None
        assert b.weight_gradient is not None
        assert a.weight_gradient.rms == pytest.approx(b.weight_gradient.rms)
    if form == "linear":
        assert called.verdict.findings[1].growth == twin.verdict.findings[1].growth


def test_fans_of_a_weight_that_is_not_square() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.ones(8, 24)), nn.Parameter(torch.ones(2, 24))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.up @ self.down.t()

    layers = probe(Net(), torch.ones(3, 8)).layers
    assert [(layer.label, layer.fan_in, layer.fan_out) for layer in layers[:2]] == [("up", 8, 24), ("down", 24, 2)]


def test_the_cure_is_applied_to_the_parameter() -> None:
    net, x = Called("linear", std=WIDTH**-0.5, depth=40), torch.randn(32, WIDTH, generator=seeded(1))
    for bias in net.b:
        bias.data.zero_()
    before = net.w[5].detach().clone()
    report = probe(net, x)
    assert str(report.verdict) == "activations vanishing, gradients vanishing"
    assert "weights at variance 1/n around relu halve the second moment" in report.prescription
    report.apply(net)
    ratio = (net.w[5] / before).detach()
    assert float(ratio.std()) < 1e-5
    assert float(ratio.mean()) == pytest.approx(2**0.5, rel=0.04)  # 4,096 draws: their rms is 1/√n to 1.1 %
    assert probe(net, x).healthy


class Block(nn.Module):
    """Pre-norm attention and a feed-forward part, of functions alone."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = {
            "qkv": (3 * width, width),
            "out": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator) * shape[1] ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        m, t, width = x.shape
        parts = F.linear(F.layer_norm(x, (width,)), self.qkv).chunk(3, -1)
        q, k, v = (part.view(m, t, 4, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(m, t, width)
        x = x + F.linear(attended, self.out)
        return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (width,)), self.up)), self.down)


def transformer(blocks: int = 6) -> nn.Sequential:
    generator = seeded()
    return nn.Sequential(*(Block(WIDTH, generator) for _ in range(blocks)))


def test_a_transformer_without_a_module_has_a_row_for_each_step() -> None:
    report = probe(transformer(), torch.randn(8, 8, WIDTH, generator=seeded(1)))
    rows = [(layer.label, layer.role, layer.depth) for layer in report.layers]
    assert rows[:8] == [
        ("0.layer_norm()", "normalization", 0),
        ("0.qkv", "weight", 1),
        ("0.out", "weight", 2),
        ("0.layer_norm()#1", "normalization", 2),
        ("0.up", "weight", 3),
        ("0.gelu()", "activation", 3),
        ("0.down", "weight", 4),
        ("0", "other", 4),
    ]
    assert report.healthy
    assert report.theory is not None
    # n_in E w² = 1 by construction; 24,576 draws of it: 0.5 %.
    assert report.theory["2.qkv"].forward == pytest.approx(1, abs=0.02)


def test_weights_that_stand_out_in_a_transformer_are_blamed_and_cured() -> None:
    net, x = transformer(), torch.randn(8, 8, WIDTH, generator=seeded(1))
    with torch.no_grad():
        for parameter in net[3].parameters():
            parameter.mul_(100)
    report = probe(net, x)
    assert not report.healthy
    assert report.first_bad_layer == "3.qkv"
    assert report.prescription.startswith("The weights of `3.qkv`, `3.out`, `3.up`, `3.down` are 1")
    report.apply(net)
    assert probe(net, x).healthy


def test_a_module_that_is_a_layer_and_calls_a_function_is_counted_once() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, generator=seeded()))

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * F.linear(x, self.weight)

    layers = probe(nn.Sequential(Own(), Own()), torch.ones(3, 8)).layers
    assert [layer.label for layer in layers] == ["0", "1"]


def test_calls_of_one_parameter_are_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.w), self.w)

    layers = probe(Twice(), torch.ones(3, 8)).layers
    assert [(layer.label, layer.depth) for layer in layers if layer.role == "weight"] == [("w", 1), ("w#1", 2)]


def test_records_without_a_weight_layer_have_a_verdict() -> None:
    """What hooks see of such a net, without anybody who sees functions."""
    layers = probe(transformer(), torch.randn(2, 4, WIDTH, generator=seeded(1)), theory=False).layers
    assert all(layer.role != "weight" for layer in layers)
    verdict = judge(layers)
    assert verdict.healthy
    assert "Fewer than two weight layers" in verdict.reason
    assert "`probe(model, inputs)` and `SignalMonitor` see those too" in verdict.reason


def test_what_refuses_such_a_net_is_not_offered() -> None:
    for std, biased in ((WIDTH**-0.5, False), (4 * WIDTH**-0.5, False), (0.0, False), (1.0, True)):
        net = Called("linear", std=std, depth=30)
        for bias in net.b:
            bias.data.fill_(-1e3 if biased else 0.0)  # ReLU is dead behind it
        report = probe(net, torch.randn(32, WIDTH, generator=seeded(1)))
        assert not report.healthy
        assert report.prescription
        for name in ("initialize_", "calibrate_"):
            assert name not in report.prescription
    with pytest.raises(ValueError, match="model must hold a weight to initialise"):
        initialize_(net)
    with pytest.raises(ValueError, match="model must run a layer whose weight can be scaled"):
        calibrate_(net, torch.randn(32, WIDTH))


def test_what_is_offered_for_an_attention_draws_its_weights() -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    nn.init.zeros_(net.in_proj_weight)
    report = probe(net, tuple(torch.randn(3, 8, 5, WIDTH, generator=seeded(1))), loss=lambda output: output[0].sum())
    assert "`initialize_(model)`" in report.prescription
    initialize_(net)
    assert bool(net.in_proj_weight.any())


def test_a_monitor_beside_such_a_net_closes_without_a_complaint(tmp_path) -> None:
    net = transformer(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with SignalMonitor(net, tmp_path, every=1) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = net(torch.randn(2, 4, WIDTH, generator=seeded(1))).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert not monitor.aside
    assert monitor.report is not None


def test_the_growth_between_layers_starts_from_the_layer_not_from_its_container() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(3)))
    theory = probe(net, torch.ones(3, 8)).theory
    assert theory is not None
    assert [entry.since for entry in theory.layers] == ["0.0", "1.0"]
    assert [entry.name for entry in theory.layers] == ["1.0", "2.0"]


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_of_pytorchs_transformer_that_stands_out(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, F.gelu, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    x = torch.randn(8, 8, WIDTH, generator=seeded(1))
    assert probe(net, x).healthy
    with torch.no_grad():
        for parameter in net.layers[4].parameters():
            if parameter.dim() > 1:
                parameter.mul_(100)
    report = probe(net, x)
    assert not report.healthy
    # Only gradients go wrong: before a normalised branch from the projection in front of the large one on; behind a sum
    # each of the two branches takes them down and up again.
    assert report.first_bad_layer == ("layers.4.self_attn" if norm_first else "layers.4.linear1")
    blamed = ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    assert report.prescription.startswith(f"The weights of {', '.join(f'`layers.4.{name}`' for name in blamed)} are ")
    applied = report.apply(net)
    # Xavier's gains √(2 n_in/(n_in + n_out)) are √½, 1, √⅔, √(4/3); with four too large 1 is the one in the middle.
    assert applied.factors["layers.4.self_attn.in_proj_weight"] == pytest.approx(0.01 * 2**0.5, rel=0.03)
    assert applied.factors["layers.4.self_attn.out_proj.weight"] == pytest.approx(0.01, rel=0.03)
    assert probe(net, x).healthy
