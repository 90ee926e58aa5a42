"""Expected growth against what wide nets do, and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchnotes.diagnostics import expect
from torchnotes.diagnostics.theory import Expectation

WIDTH = 1024


def _linear(variance: float, generator: torch.Generator, n_in: int = WIDTH, n_out: int = WIDTH) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(variance / n_in), generator=generator)
    return layer


class _Residual(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = _linear(2.0, generator), _linear(1.0, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(x)))


def _chain(variance, *make, depth=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    modules = []
    for _ in range(depth):
        modules += [_linear(variance, generator), *(factory() for factory in make)]
    return nn.Sequential(*modules)


def _batch(count=256, width=WIDTH, seed=7):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def _swish(x):
    return x * torch.sigmoid(1.7 * x)


class _Swish(nn.Module):
    def forward(self, x):
        return _swish(x)


NETS = {
    "linear": (1.0, []),
    "relu": (2.0, [nn.ReLU]),
    "relu in place": (2.0, [lambda: nn.ReLU(inplace=True)]),
    "leaky relu": (2.0, [lambda: nn.LeakyReLU(0.1)]),
    "tanh": (1.5, [nn.Tanh]),
    "sigmoid": (1.0, [nn.Sigmoid]),
    "gelu": (2.0, [nn.GELU]),
    "selu": (1.0, [nn.SELU]),
    "a hand-written activation": (2.0, [_Swish]),
    "dropout after relu": (2.0, [nn.ReLU, lambda: nn.Dropout(0.3)]),
    "batch norm and relu": (1.0, [lambda: nn.BatchNorm1d(WIDTH), nn.ReLU]),
    "layer norm and relu": (1.0, [lambda: nn.LayerNorm(WIDTH), nn.ReLU]),
}


def _assert_within(entries: list[Expectation], share: float) -> None:
    for entry in entries:
        assert entry.reason == ""
        assert entry.forward == pytest.approx(entry.measured_forward, rel=share), entry
        if entry.measured_backward is not None:
            assert entry.backward == pytest.approx(entry.measured_backward, rel=share), entry


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_within_three_per_cent_at_width_1024(name):
    variance, make = NETS[name]
    torch.manual_seed(0)  # the dropout masks
    theory = expect(_chain(variance, *make), _batch())
    assert len(theory.layers) == 4
    _assert_within([*theory.layers, *theory.modules[:-1]], 0.03)


def test_residual_blocks_are_within_three_per_cent():
    generator = torch.Generator().manual_seed(0)
    theory = expect(nn.Sequential(*[_Residual(generator) for _ in range(4)]), _batch())
    _assert_within([*theory.layers, *theory.modules[:-1]], 0.03)
    # q_out = q + q/1 · ½·2·1 = 2q: the block multiplies the rms by √2.
    assert theory["1"].forward == pytest.approx(math.sqrt(2), rel=0.03)
    assert theory["1"].backward == pytest.approx(math.sqrt(2), rel=0.03)


def test_known_answers_of_the_theory_itself():
    # What is left of chance: the mean of 1024 units that all samples share is off 0 by 1/√1024 = 0.03 standard
    # deviations, and P(z > 0) by 0.4 of that, 1.2 % of the square, 0.6 % of the rms.
    relu = expect(_chain(2.0, nn.ReLU), _batch())
    assert relu.layers[1].backward == pytest.approx(1.0, rel=0.012)
    half = expect(_chain(1.0, nn.ReLU), _batch())
    assert half.layers[1].backward == pytest.approx(math.sqrt(0.5), rel=0.012)
    assert half.depth_scale == pytest.approx(1 / math.log(2), rel=0.03)
    sigmoid = expect(_chain(1.0, nn.Sigmoid), _batch())
    assert sigmoid.layers[-1].backward == pytest.approx(0.236, rel=0.01)


def test_batch_norm_with_relu_multiplies_gradients_by_the_published_factor():
    # Yang et al. 2019: π/(π − 1) on the squared gradient, once the samples have forgotten the input.
    theory = expect(_chain(1.0, lambda: nn.BatchNorm1d(WIDTH), nn.ReLU, depth=6), _batch(512))
    assert theory.layers[-1].backward ** 2 == pytest.approx(math.pi / (math.pi - 1), rel=0.02)
    assert theory.layers[-1].forward == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("variance", "forward", "backward"),
    [(1 / 1024, 1.00, 0.25), (2 / (1024 + 256), 1.60, 0.40), (1 / 256, 4.01, 1.00)],
)
def test_a_layer_from_1024_to_256(variance, forward, backward):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(_linear(1.0, generator), _linear(1024 * variance, generator, 1024, 256))
    entry = expect(net, _batch(1024)).layers[0]
    # Second moments; the table has three digits, the mean of 1024·256 squares scatters by 0.3 %.
    assert entry.forward**2 == pytest.approx(forward, rel=0.01)
    assert entry.backward**2 == pytest.approx(backward, rel=0.01)
    assert entry.measured_forward**2 == pytest.approx(forward, rel=0.02)


@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_a_multiple_of_the_identity_is_exact(factor):
    layers = [nn.Linear(16, 16, bias=False) for _ in range(10)]
    for layer in layers:
        nn.init.eye_(layer.weight).data.mul_(factor)
    theory = expect(nn.Sequential(*layers), torch.ones(1, 16) + _batch(4, 16))
    for entry in theory.layers:
        assert entry.forward == pytest.approx(factor, rel=1e-6)
        assert entry.measured_forward == pytest.approx(factor, rel=1e-6)
        assert entry.backward == pytest.approx(factor, rel=1e-6)
    assert theory.depth_scale == pytest.approx(1 / (2 * abs(math.log(factor))), rel=1e-6)


def test_convolutions_count_only_the_taps_on_the_image():
    generator = torch.Generator().manual_seed(0)
    modules = []
    for stride in (1, 2, 1):
        conv = nn.Conv2d(256, 256, 3, stride=stride, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (256 * 9)), generator=generator)
        modules += [conv, nn.ReLU()]
    x = torch.randn(4, 256, 16, 16, generator=generator)
    theory = expect(nn.Sequential(*modules), x)
    # The theory takes the map as even, though zero padding has weakened its border: 2 to 5 % of the rms on 8
    # pixels; 256 channels scatter by up to √(5/256)/2 = 7 %, all positions together.
    _assert_within(list(theory.layers), 0.06)
    # Of 3 taps 46/16 fall on 16 pixels: (46/48)² of the variance is left.
    assert theory["0"].forward == pytest.approx(math.sqrt(2) * 46 / 48, rel=0.01)


def test_a_step_without_theory_is_named_and_what_follows_goes_on():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(_linear(2.0, generator), nn.Softmax(-1), _linear(2.0, generator), nn.ReLU())
    theory = expect(net, _batch(16))
    assert theory.layers[0].forward is None
    assert theory.layers[0].reason == "the theory does not cover `softmax`"
    assert theory["3"].forward == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert "the theory does not cover `softmax`" in " ".join(str(theory).split())


def test_correlated_signals_are_not_added_as_if_they_were_not():
    class Correlated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = _linear(1.0, torch.Generator().manual_seed(0))

        def forward(self, x):
            h = self.fc(x)
            return h + F.relu(h)

    theory = expect(nn.Sequential(Correlated()), _batch(16))
    assert theory["0"].forward is None
    assert "correlated" in theory["0"].reason


def test_a_gate_multiplies_second_moments():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.a, self.b = _linear(1.0, generator), _linear(1.0, generator)

        def forward(self, x):
            return self.a(x) * torch.sigmoid(self.b(x))

    entry = expect(nn.Sequential(Gate()), _batch())["0"]
    # E σ(z)² = 0.2934 for z ~ N(0, 1).
    assert entry.forward == pytest.approx(math.sqrt(0.2934), rel=0.01)
    assert entry.measured_forward == pytest.approx(entry.forward, rel=0.03)


def test_parameters_used_by_functions_are_seen():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) * WIDTH**-0.5)
            self.scale = nn.Parameter(torch.full((WIDTH,), 0.5))

        def forward(self, x):
            return self.scale * F.linear(x, self.weight)

    entry = expect(nn.Sequential(Functional()), _batch())["0"]
    assert entry.forward == pytest.approx(0.5, rel=0.01)
    assert entry.measured_forward == pytest.approx(0.5, rel=0.03)


def test_the_model_is_left_as_found():
    net = _chain(1.0, lambda: nn.BatchNorm1d(WIDTH), nn.ReLU, lambda: nn.Dropout(0.5), depth=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    expect(net, _batch(32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_hooks_are_removed_when_the_model_raises():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken on purpose")

    net = nn.Sequential(nn.Linear(4, 4), Broken())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        expect(net, torch.randn(2, 4))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_a_transformer_layer_has_gaps_that_are_named():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
    theory = expect(layer, torch.randn(8, 10, 64))
    assert theory["self_attn"].forward is None
    assert theory["self_attn"].reason == "the theory does not cover MultiheadAttention"
    # What it adds to the residual stream went through its own weights: uncorrelated, so the next layer has a theory.
    assert theory["norm2"].forward == pytest.approx(theory["norm2"].measured_forward, rel=0.01)
    linear = theory["linear1"]
    assert linear.forward == pytest.approx(linear.measured_forward, rel=0.1)  # 64 wide


def test_the_report_shows_what_was_expected_beside_what_was_measured():
    from torchnotes.diagnostics import probe

    net = _chain(2.0, nn.ReLU, depth=3)
    report = probe(net, _batch(64))
    assert report.theory.layers[0].since == "0"
    header, first = str(report).splitlines()[0], str(report).splitlines()[2]
    assert header.count("expected") == 2
    cells = [cell.strip() for cell in first.split("│")]
    rms, expected = float(cells[3]), float(cells[4])
    assert expected == pytest.approx(rms, rel=0.03)
    assert probe(net, _batch(64), theory=False).theory is None


def test_a_layer_with_activation_and_dropout_of_its_own():
    from torchnotes import nn as notes

    torch.manual_seed(0)
    net = nn.Sequential(*[notes.Dense(WIDTH, WIDTH, "relu", keep_prob=0.7, bias=False) for _ in range(3)])
    for layer in net:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / WIDTH), generator=torch.Generator().manual_seed(1))
    theory = expect(net, _batch())
    # 2/n · ½ / keep: He's scale with the dropout it does not know of.
    assert theory["1"].forward == pytest.approx(0.7**-0.5, rel=0.02)
    assert theory["1"].forward == pytest.approx(theory["1"].measured_forward, rel=0.03)
    assert theory["1"].backward == pytest.approx(theory["1"].measured_backward, rel=0.03)
