"""The two projections of nn.MultiheadAttention have a row each, in the probe and beside training, and are blamed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from torchnotes.diagnostics import SignalMonitor, probe
from torchnotes.diagnostics.verdict import judge

WIDTH, HEADS, LENGTH = 32, 8, 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*, batch_first: bool = True) -> Tensor:
    x = torch.randn(8, LENGTH, WIDTH, generator=seeded(1))
    return x if batch_first else x.transpose(0, 1)


def encoder(
    norm_first: bool, *, depth: int = 6, batch_first: bool = True, dropout: float = 0.0
) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout, batch_first=batch_first, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return net


def mean_square(output: Tensor) -> Tensor:
    return output.square().mean()


def by_hand(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a self-attention projects to queries, keys and values, and what it returns: the formula, batch first."""
    projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
    m, t, _ = x.shape
    q, k, v = (part.view(m, t, HEADS, -1).transpose(1, 2) for part in projected.chunk(3, -1))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5, -1) @ v
    return projected, mixed.transpose(1, 2).reshape(m, t, WIDTH) @ attention.out_proj.weight.T + attention.out_proj.bias


class Attends(nn.Module):
    def __init__(self, batch_first: bool = True, need_weights: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_rows_hold_what_the_formula_says(batch_first: bool, need_weights: bool) -> None:
    net = Attends(batch_first, need_weights)
    x = batch(batch_first=batch_first)
    first, last = probe(net, x, loss=mean_square).layers
    assert [(row.label, row.role, row.depth) for row in (first, last)] == [
        ("attention", "weight", 1),
        ("attention.out_proj", "weight", 2),
    ]
    assert [(row.fan_in, row.fan_out) for row in (first, last)] == [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH)]
    projected, output = by_hand(net.attention, batch())
    projected.retain_grad()
    output.retain_grad()
    weights = [net.attention.in_proj_weight, net.attention.out_proj.weight]
    biases = [net.attention.in_proj_bias, net.attention.out_proj.bias]
    mean_square(output).backward()
    for row, tensor, weight, bias in zip((first, last), (projected, output), weights, biases, strict=True):
        # Sums of at most 9,216 float32 products in another order.
        assert row.activation.rms == pytest.approx(tensor.square().mean().sqrt().item(), rel=1e-4)
        assert row.gradient.rms == pytest.approx(tensor.grad.square().mean().sqrt().item(), rel=1e-4)
        assert row.weight.rms == pytest.approx(weight.square().mean().sqrt().item(), rel=1e-4)
        assert row.weight_gradient.rms == pytest.approx(weight.grad.square().mean().sqrt().item(), rel=1e-4)
        assert row.bias.rms == pytest.approx(bias.square().mean().sqrt().item(), abs=1e-6)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_one_output_projection_that_stands_out_is_blamed_and_cured(norm_first: bool, batch_first: bool) -> None:
    net, x = encoder(norm_first, batch_first=batch_first), batch(batch_first=batch_first)
    assert probe(net, x).healthy
    weight = net.layers[3].self_attn.out_proj.weight
    with torch.no_grad():
        weight.mul_(100)
    report = probe(net, x)
    assert not report.healthy
    assert report.prescription.startswith("The weights of `layers.3.self_attn.out_proj` are 1")
    assert "; bring them to the scale of the others" in report.prescription
    applied = report.apply(net)
    # Xavier's gains are 0.71, 1, 0.82 and 1.15: the middle is 0.91.
    assert list(applied.factors) == ["layers.3.self_attn.out_proj.weight"]
    assert applied.factors["layers.3.self_attn.out_proj.weight"] == pytest.approx(0.0091, rel=0.05)
    assert probe(net, x).healthy


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("name", ["self_attn.in_proj_weight", "linear1.weight", "linear2.weight"])
def test_any_one_weight_that_stands_out_is_blamed_and_cured(norm_first: bool, name: str) -> None:
    net, x = encoder(norm_first), batch()
    with torch.no_grad():
        net.layers[3].get_parameter(name).mul_(100)
    report = probe(net, x)
    assert not report.healthy
    assert list(report.apply(net).factors) == [f"layers.3.{name}"]
    assert probe(net, x).healthy


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_branch_may_be_as_small_as_it_likes(norm_first: bool) -> None:
    net = encoder(norm_first)
    with torch.no_grad():
        net.layers[3].self_attn.out_proj.weight.mul_(0.01)
    assert probe(net, batch()).healthy


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_monitor_has_the_rows_of_the_probe_and_blames_alike(norm_first: bool) -> None:
    net, records = encoder(norm_first), []
    with torch.no_grad():
        net.layers[3].self_attn.out_proj.weight.mul_(100)
    plain = copy.deepcopy(net)
    expected = probe(net, batch(), loss=mean_square)
    with SignalMonitor(net, None, every=1, detail=2, sinks=[records.append]) as monitor:
        for model in (plain, net):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for _ in range(3):
                optimizer.zero_grad()
                loss = mean_square(model(batch()))
                loss.backward()
                optimizer.step()
                if model is net:
                    monitor.step(loss)
        report = monitor.report
    assert not monitor.aside
    assert [layer.label for layer in records[0].layers] == [layer.label for layer in expected.layers]
    weights = [layer.label for layer in expected.layers if layer.role == "weight"]
    assert [layer.label for layer in records[1].layers] == weights
    assert [layer.label for layer in records[2].layers] == [layer.label for layer in expected.layers]
    for one, other in zip(records[0].layers, expected.layers, strict=True):
        assert one.activation.rms == pytest.approx(other.activation.rms, rel=1e-5)
        assert one.gradient.rms == pytest.approx(other.gradient.rms, rel=1e-5)
    row = next(row for row in records[0].rows() if row["layer"] == "layers.2.self_attn.out_proj")
    assert row["update_ratio"] > 0
    assert judge(records[0].layers).prescription == expected.prescription
    assert report.prescription.startswith("The weights of `layers.3.self_attn.out_proj` are ")
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), net.parameters(), strict=True))


def labels(net: nn.Module, x: object) -> list[str]:
    return [layer.label for layer in probe(net, x).layers if layer.role == "weight"]


def test_the_row_of_an_attention_to_something_else_is_that_of_the_values() -> None:
    torch.manual_seed(0)
    memory = 2 * torch.randn(8, 5, WIDTH, generator=seeded(2))
    net = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    first, last = probe(net, (batch(), memory, memory), loss=lambda output: mean_square(output[0])).layers
    assert [first.label, last.label] == ["(model)", "out_proj"]
    assert first.shape == (5, 8, 2 * WIDTH)
    expected = memory @ net.in_proj_weight[WIDTH:].T  # keys and values; the bias is 0
    assert first.activation.rms == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-4)
    assert last.shape == (8, LENGTH, WIDTH)


def test_separate_projections() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x[..., :8], x[..., :6])[0]

    torch.manual_seed(0)
    first, last = probe(Net(), batch()).layers
    assert (first.label, first.fan_in, first.fan_out) == ("attention.v_proj_weight", 6, WIDTH)
    assert last.label == "attention.out_proj"


def test_a_decoder_has_both_of_its_attentions() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True)
    found = labels(nn.TransformerDecoder(layer, 1), (batch(), batch()))
    assert [label.removeprefix("layers.0.") for label in found] == [
        "self_attn",
        "self_attn.out_proj",
        "multihead_attn",
        "multihead_attn.out_proj",
        "linear1",
        "linear2",
    ]


def test_a_weight_made_by_a_parametrisation_leaves_the_module_its_one_row() -> None:
    net = Attends()
    weight_norm(net.attention.out_proj)
    assert labels(net, batch()) == ["attention"]


def test_masks_dropout_and_an_unbatched_input_change_nothing() -> None:
    net, x = encoder(True, depth=2, dropout=0.1), batch()
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padding = torch.zeros(8, LENGTH, dtype=torch.bool)
    padding[:, -2:] = True
    expected = labels(net, x)
    assert labels(net, {"src": x, "mask": mask, "is_causal": True}) == expected
    assert labels(net, {"src": x, "src_key_padding_mask": padding}) == expected
    assert labels(net, x[0]) == expected
    assert labels(net.eval(), x) == expected


def test_the_fast_path_in_eval_mode_is_left_alone() -> None:
    net = encoder(False, depth=2).eval().requires_grad_(False)
    plain = net(batch())
    records = []
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        # With hooks torch takes its slow path, that of training: the same sums in another order.
        torch.testing.assert_close(net(batch()), plain, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            net(batch())
        monitor.step()
    assert not monitor.aside
    assert probe(net, batch()).verdict.forward == "healthy"
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_attention_keeps_its_gradient(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(WIDTH, WIDTH), Attends()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, self.first(x), use_reentrant=reentrant)

    rows = [layer for layer in probe(Checkpointed(), batch()).layers if layer.role == "weight"]
    inside = ["inner.attention"] if reentrant else ["inner.attention", "inner.attention.out_proj"]
    assert [row.label for row in rows] == ["first", *inside]
    assert all(row.gradient is not None for row in rows)


def test_attention_that_is_called_as_a_function_counts_once() -> None:
    class Own(nn.Module):
        """A module of the user's that has an attention's weights and calls its output projection as a module."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS)

        def forward(self, x: Tensor) -> Tensor:
            projected = F.linear(x, self.attention.in_proj_weight)
            return self.attention.out_proj(projected[..., :WIDTH])

    torch.manual_seed(0)
    assert labels(Own(), batch()) == ["attention", "attention.out_proj"]


def test_a_forward_that_raises_inside_leaves_nothing_behind() -> None:
    class Masked(Attends):
        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, attn_mask=mask)[0]

    net, mask = Masked(), torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match="The shape of the 2D attn_mask"):
        probe(net, batch())
    assert _get_current_function_mode_stack() == []
    mask = torch.zeros(LENGTH, LENGTH)
    assert labels(net, batch()) == ["attention", "attention.out_proj"]


def test_a_module_that_does_more_than_attend_is_left_alone() -> None:
    class Residual(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x + super().forward(x, x, x)[0]

    torch.manual_seed(0)
    net = nn.Sequential(Residual(WIDTH, HEADS, batch_first=True))
    assert labels(net, batch()) == ["0"]


def test_a_monitor_on_an_attention_alone_has_its_one_row() -> None:
    torch.manual_seed(0)
    net, records = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), []
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            mean_square(net(batch(), batch(), batch())[0]).backward()
            optimizer.step()
    assert not monitor.aside
    rows = [[(layer.label, layer.shape) for layer in record.layers] for record in records]
    assert rows == [[("(model)", (8, LENGTH, WIDTH))]] * 2
