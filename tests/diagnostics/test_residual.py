"""Nets of skip connections without normalisation: whatever makes them explode, one cure makes them healthy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.diagnostics._signals import mlp
from torchnotes.diagnostics import probe
from torchnotes.diagnostics.prescription import prescriptions


class Block(nn.Module):
    """x + f(x) of some layers; the activation between them, behind each or before each."""

    def __init__(self, width: int, count: int, activation: type[nn.Module], variance: float, place: str, seed: int):
        super().__init__()
        modules: list[nn.Module] = []
        for index in range(count):
            layer = mlp(1, width, None, variance, 1000 * seed + index)[0]
            if place == "before":
                modules += [activation(), layer]
            elif place == "behind" or index < count - 1:
                modules += [layer, activation()]
            else:
                modules += [layer]
        self.branch = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def net_of(depth, width, count, activation, variance, place):
    return nn.Sequential(*(Block(width, count, activation, variance, place, seed) for seed in range(depth)))


def batch(width):
    return torch.randn(32, width, generator=torch.Generator().manual_seed(5))


def weights(net):
    return [module.weight for module in net.modules() if isinstance(module, nn.Linear)]


def cured(net, width):
    report = probe(net, batch(width), theory=False)
    report.apply(net)
    return report, probe(net, batch(width), theory=False)


@pytest.mark.parametrize(
    ("depth", "width", "count", "activation", "variance", "place"),
    [
        (10, 64, 1, nn.ReLU, 2.0, "behind"),
        (20, 128, 2, nn.ReLU, 1.0, "behind"),  # each adds little, but in the same direction
        (30, 128, 2, nn.GELU, 1.0, "behind"),
        (60, 64, 2, nn.GELU, 1.0, "behind"),
        (60, 64, 3, nn.ReLU, 1.0, "behind"),
        (60, 64, 1, nn.ReLU, 2.0, "behind"),
        (40, 64, 2, nn.GELU, 2.0, "between"),
        (60, 64, 3, nn.Tanh, 2.0, "between"),
        (40, 64, 1, nn.GELU, 2.0, "before"),
        (10, 512, 3, nn.ReLU, 2.0, "behind"),
    ],
)
def test_the_sums_are_cured_at_once(depth, width, count, activation, variance, place):
    net = net_of(depth, width, count, activation, variance, place)
    before, after = cured(net, width)
    assert not before.healthy
    assert f"Each of {depth} skip connections adds the variance of its branch" in before.prescription
    assert after.healthy, after.summary()


@pytest.mark.parametrize(
    ("activation", "variance", "place"),
    [
        *((activation, 2.0, place) for activation in (nn.ReLU, nn.GELU) for place in ("between", "behind", "before")),
        (nn.Tanh, 1.0, "between"),  # behind the weight, or before the next one, tanh makes 1 of whatever is too large
    ],
)
def test_a_weight_that_stands_out_is_mended_with_them(activation, variance, place):
    net = net_of(12, 64, 2, activation, variance, place)
    with torch.no_grad():
        weights(net)[9].mul_(100)
    before, after = cured(net, 64)
    assert not before.healthy
    last = prescriptions(before.layers, before.verdict)[0]
    assert last.cause == "weight scale"
    assert before.prescription.startswith("The weights of `4.branch.")
    assert after.healthy, after.summary()


def test_a_sum_that_is_sound_in_itself_is_divided_by_the_root_of_their_number():
    report = probe(net_of(20, 256, 2, nn.ReLU, 2**0.5, "between"), batch(256), theory=False)
    (cure, *_) = prescriptions(report.layers, report.verdict)
    # β = 2^½ · 2^½ · ½ = 1, and nothing correlates x with W ReLU(V x).
    assert cure.cause == "missing normalisation"
    assert set(cure.factors) == {f"{index}.branch.2" for index in range(20)}
    assert list(cure.factors.values()) == pytest.approx([20**-0.5] * 20)


def test_the_correlation_of_a_rectified_branch_counts():
    """E x·ReLU(W x) > 0 once the stream has a mean: k solves k² β + 2 c k √β = 2/N, here by bisection."""
    net = net_of(20, 1024, 1, nn.ReLU, 2.0, "behind")
    x, shares = torch.randn(64, 1024, generator=torch.Generator().manual_seed(5)), []
    report = probe(net, x, theory=False)
    (cure, *_) = prescriptions(report.layers, report.verdict)
    with torch.no_grad():
        for block in net:
            f = block.branch(x)
            shares.append(((f * f).mean() / (x * x).mean(), (x * f).mean() / (x * x).mean()))
            x = x + f
    for index, (beta, overlap) in enumerate(shares):
        low, high = 0.0, 1.0
        for _ in range(60):
            k = (low + high) / 2
            low, high = (k, high) if k * k * beta + 2 * k * overlap < 2 / 20 else (low, k)
        # β from the weights, at 2 · ½ = 1, in place of the measured one: 1,024 units' difference.
        if overlap > 0.3:
            assert cure.factors[f"{index}.branch.0"] == pytest.approx(low, rel=0.1)


def test_blocks_that_are_no_sums_are_not_taken_for_them():
    class Doubled(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.fc = mlp(1, 64, None, 1.0, seed)[0]

        def forward(self, x):
            return 2 * self.fc(x)

    net = nn.Sequential(*(Doubled(seed) for seed in range(20)))
    report = probe(net, batch(64), theory=False)
    cure = prescriptions(report.layers, report.verdict)[0]
    assert cure.cause != "missing normalisation"
