"""The verdict on nets whose answer is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.diagnostics._signals import mlp, signals
from torchnotes.diagnostics import probe
from torchnotes.diagnostics.verdict import judge
from torchnotes.diagnostics.verdict_profile import change_point, power_law


def _batch(width: int, seed: int = 0, count: int = 16) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(10_000 + seed))


def _states(activation, variance, width, depth, seeds):
    return Counter(
        (verdict.forward, verdict.backward)
        for seed in range(seeds)
        for verdict in [judge(signals(mlp(depth, width, activation, variance, seed), _batch(width, seed, 8)))]
    )


def test_he_at_width_64_and_depth_50_is_healthy():
    assert _states(nn.ReLU, 2.0, 64, 50, 100)["healthy", "healthy"] >= 95


def test_one_over_n_with_relu_at_the_same_size_always_vanishes():
    assert _states(nn.ReLU, 1.0, 64, 50, 100) == {("vanishing", "vanishing"): 100}


@pytest.mark.parametrize(
    ("factor", "state"), [(1.5, "exploding"), (1.1, "exploding"), (0.9, "vanishing"), (0.5, "vanishing")]
)
def test_the_notes_linear_nets(factor, state):
    # SPEC C1 to C4: W = c·I, depth 150, x = [1, 1].
    layers = [nn.Linear(2, 2, bias=False) for _ in range(150)]
    for layer in layers:
        nn.init.eye_(layer.weight).data.mul_(factor)
    verdict = judge(signals(nn.Sequential(*layers), torch.ones(1, 2)))
    assert (verdict.forward, verdict.backward) == (state, state)
    forward, backward = verdict.findings
    # float32 holds 0.5^149 with one bit: the growth rests on the layers whose digits it can hold, to 6 digits.
    assert forward.growth == pytest.approx(factor, rel=1e-6)
    assert backward.growth == pytest.approx(factor, rel=1e-6)
    assert verdict.first_bad_layer == "layers.0"
    assert backward.first_bad_layer == "layers.148"
    assert "Chance alone" not in verdict.reason


@pytest.mark.parametrize("depth", [50, 200])
def test_tanh_at_one_over_n_is_healthy_since_it_decays_like_a_power(depth):
    verdict = judge(signals(mlp(depth, 256, nn.Tanh, 1.0, 0), _batch(256)))
    assert (verdict.forward, verdict.backward) == ("healthy", "healthy")


def test_a_deep_tanh_net_beyond_the_band_is_healthy_with_the_exponent_as_reason():
    # q → 1/(2l): rms at layer 3000 is 10^-1.7 of its start; made from the formula, not from a net of that depth.
    records = signals(mlp(2000, 2, None, 1.0, 0), _batch(2))
    curve = [-0.5 * np.log10(2 * (index + 1)) for index in range(len(records))]
    records = [
        replace(r, shape=(16, 100_000), activation=replace(r.activation, log10_rms=y, rms=10**y), gradient=None)
        for r, y in zip(records, curve, strict=True)
    ]
    verdict = judge(records)
    assert verdict.forward == "healthy"
    assert "rms ∝ l^-0.50" in verdict.reason


def test_a_sigmoid_net_is_healthy_forward_and_vanishing_backward():
    verdict = judge(signals(mlp(50, 256, nn.Sigmoid, 1.0, 0), _batch(256)))
    assert (verdict.forward, verdict.backward) == ("healthy", "vanishing")
    assert verdict.findings[1].growth == pytest.approx(0.236, rel=0.02)
    assert verdict.reason.startswith("Gradients shrink ×0.23")


def test_batch_norm_with_relu_is_healthy_forward_and_exploding_backward():
    modules = []
    for module in mlp(40, 256, nn.ReLU, 1.0, 0):
        modules += [module, nn.BatchNorm1d(256)] if isinstance(module, nn.Linear) else [module]
    verdict = judge(signals(nn.Sequential(*modules), _batch(256, count=256)))
    assert (verdict.forward, verdict.backward) == ("healthy", "exploding")
    # π/(π−1) on the squared gradient, so √1.467 = 1.21; 256 samples and units scatter it by a few per cent.
    assert verdict.findings[1].growth == pytest.approx(1.211, rel=0.03)


def test_the_layer_where_the_weights_change_is_named():
    net = mlp(60, 128, nn.ReLU, 2.0, 0)
    for module in list(net)[60:]:  # layers.60 is the 31st Linear
        if isinstance(module, nn.Linear):
            module.weight.data.div_(2**0.5)
    forward, _ = judge(signals(net, _batch(128))).findings
    assert forward.state == "vanishing"
    index = int(forward.first_bad_layer.removeprefix("layers."))
    assert 54 <= index <= 66  # within 3 of 60 layers: the walk of the scale blurs the bend


def test_a_single_layer_at_the_wrong_scale_is_named():
    net = mlp(20, 128, nn.ReLU, 2.0, 0)
    net[8].weight.data.mul_(1e-4)
    forward, backward = judge(signals(net, _batch(128))).findings
    assert (forward.state, forward.first_bad_layer) == ("vanishing", "layers.8")
    # The gradient passes W of layers.8 on its way to the output of the layer before it.
    assert (backward.state, backward.first_bad_layer) == ("vanishing", "layers.6")


def test_a_first_layer_at_the_wrong_scale_is_seen():
    net = mlp(20, 128, nn.ReLU, 2.0, 0)
    net[0].weight.data.mul_(1e-4)
    assert judge(signals(net, _batch(128))).first_bad_layer == "layers.0"


def test_one_odd_layer_that_the_others_recover_from_is_not_a_verdict():
    records = signals(mlp(20, 128, nn.ReLU, 2.0, 0), _batch(128))
    low = records[10].gradient
    records[10] = replace(records[10], gradient=replace(low, log10_rms=low.log10_rms - 4))
    assert judge(records).healthy


def _scaled(scales, width=64):
    net = mlp(len(scales), width, nn.ReLU, 2.0, 0)
    for layer, scale in zip([m for m in net if isinstance(m, nn.Linear)], scales, strict=True):
        layer.weight.data.mul_(scale)
    return net


@pytest.mark.parametrize(("factor", "states"), [(0.1, ("vanishing", "exploding")), (10.0, ("exploding", "vanishing"))])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_signal_that_leaves_by_18_decades_and_comes_back_is_a_finding(factor, states, with_gradients):
    """Both ends are at their scale, so neither slope nor end shows it."""
    records = signals(_scaled([factor] * 18 + [1 / factor] * 18), _batch(64))
    if not with_gradients:
        records = [replace(record, gradient=None) for record in records]
    verdict = judge(records)
    assert (verdict.forward, verdict.backward) == (states[0], states[1] if with_gradients else None)
    finding = verdict.findings[0]
    assert (finding.first_bad_layer, finding.furthest) == ("layers.0", "layers.34")
    assert finding.departure == pytest.approx(18 * np.log10(factor), abs=1.0)  # a decade for the walk at width 64
    assert "come back before the end" in verdict.reason
    assert "18 layers from `layers.36` on make up for it" in verdict.prescription


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_side_branch_may_be_as_small_as_it_likes(with_gradients):
    """A residual branch that starts at 1e-6 of its trunk, in its first layer or by a gain at its end."""

    class Block(nn.Module):
        def __init__(self, first, gain):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
            self.act, self.gain = nn.ReLU(), gain
            self.up.weight.data.mul_(first)

        def forward(self, x):
            return x + self.gain * self.down(self.act(self.up(self.norm(x))))

    torch.manual_seed(0)
    for first, gain in ((1e-6, 1.0), (1.0, 1e-6)):
        net = nn.Sequential(nn.Linear(64, 64), *[Block(first, gain) for _ in range(8)], nn.Linear(64, 64))
        layers = probe(net, _batch(64), theory=False).layers
        assert judge([r if with_gradients else replace(r, gradient=None) for r in layers]).healthy


def test_a_closed_branch_is_not_a_vanished_gradient():
    records = signals(mlp(20, 128, nn.ReLU, 2.0, 0), _batch(128))
    zero = replace(records[10].gradient, log10_rms=-float("inf"), rms=0.0)
    records[10] = replace(records[10], gradient=zero)
    assert judge(records).healthy


def test_zero_weights_in_the_middle_end_the_gradient_there():
    net = mlp(20, 128, nn.ReLU, 2.0, 0)
    net[10].weight.data.zero_()
    forward, backward = judge(signals(net, _batch(128))).findings
    assert (forward.state, forward.first_bad_layer) == ("vanishing", "layers.10")
    assert backward.state == "vanishing"


def test_a_gradient_that_is_zero_everywhere_has_vanished():
    # As where the loss's own gradient underflows: no layer loses anything, and none receives anything.
    verdict = judge(signals(mlp(20, 64, nn.ReLU, 2.0, 0), _batch(64), torch.zeros(16, 64, dtype=torch.float64)))
    assert verdict.backward == "vanishing"
    assert "Gradients are exactly 0 at all 20 weight layers: nothing arrives" in verdict.findings[1].reason


def test_non_finite_values_are_named_where_they_begin():
    net = mlp(80, 16, None, 16.0 * 4, 0).float()  # ×8 per layer: 8^80 = 1e72, past float32's 3e38
    verdict = judge(signals(net, _batch(16)))
    assert verdict.forward == "non-finite"
    index = int(verdict.first_bad_layer.removeprefix("layers."))
    assert 38 <= index <= 46  # log(3e38)/log(8) = 42.6; the largest of the batch runs ahead, the walk scatters
    assert "an overflow" in verdict.reason


def test_a_slow_explosion_of_a_linear_net_is_told_from_chance():
    # 1.1^49 is 2 decades; the identity's κ of 2 allows 1 + 3 √(2·50/32)/2 ln 10 = 2.15 at width 32 and 1.6 at 128.
    assert judge(signals(mlp(60, 128, None, 1.21, 0), _batch(128))).forward == "exploding"


def test_forward_only_gives_no_word_on_gradients():
    records = [replace(r, gradient=None) for r in signals(mlp(5, 64, nn.ReLU, 2.0, 0), _batch(64))]
    verdict = judge(records)
    assert verdict.backward is None
    assert verdict.healthy
    assert len(verdict.findings) == 1


def test_one_layer_has_no_growth():
    verdict = judge(signals(mlp(1, 64, None, 1.0, 0), _batch(64)))
    assert verdict.healthy
    assert "Fewer than two weight layers" in verdict.reason


def test_no_records_is_an_error():
    with pytest.raises(ValueError, match="layers must hold at least one record, got none"):
        judge([])


def test_change_point_tells_a_hinge_from_a_step():
    flat = np.zeros(10)
    assert change_point(np.concatenate([flat, -0.3 * np.arange(1, 11)])) == 10
    assert change_point(np.concatenate([flat, np.full(10, -4.0)])) == 10
    assert change_point(np.concatenate([flat, np.full(10, -400.0)])) == 10


def test_power_law_refuses_an_exponential_and_a_step():
    layer = np.arange(1, 101, dtype=float)
    assert power_law(-0.5 * np.log10(2 * layer), layer) == pytest.approx(-0.5)
    assert power_law(-0.02 * layer, layer) is None
    assert power_law(np.where(layer > 30, -3.0, 0.0), layer) is None
