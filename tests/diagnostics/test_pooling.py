"""Average pooling thins the gradient out over its window, and takes nothing from it."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchnotes import probe
from torchnotes.diagnostics.verdict_profile import profile
from torchnotes.init import initialize_

WIDTHS = (32, 32, 64, 64)


def net(pool: type[nn.Module]) -> nn.Sequential:
    """Four times convolution, ReLU and pooling, then a linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), pool(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 4, 10))
    initialize_(model)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classes() -> Tensor:
    return torch.arange(16) % 10


@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_he_initialisation_is_healthy_with_either_pooling(
    pool: type[nn.Module], images: Tensor, classes: Tensor
) -> None:
    report = probe(net(pool), images, classes)
    assert report.healthy, report.summary()


def test_what_a_window_of_four_takes_from_the_norm_is_given_back(images: Tensor, classes: Tensor) -> None:
    report = probe(net(nn.AvgPool2d), images, classes)
    curve = profile(report.layers, "backward")
    plain = [
        layer.gradient.log10_rms + 0.5 * math.log10(layer.gradient.count)
        for layer in curve.layers
        if layer.gradient is not None
    ]
    # x̄ = ȳ/4 at four times as many places: the norm is halved at each of the poolings between a layer and the end.
    given_back = [value - norm + plain[0] for value, norm in zip(curve.log10, plain, strict=True)]
    assert given_back == pytest.approx([pools * math.log10(2) for pools in (0, 1, 2, 3, 4)], abs=1e-9)


def test_max_pooling_takes_nothing_from_the_norm(images: Tensor, classes: Tensor) -> None:
    curve = profile(probe(net(nn.MaxPool2d), images, classes).layers, "backward")
    first, last = curve.layers[0].gradient, curve.layers[-1].gradient
    assert first is not None
    assert last is not None
    norms = last.log10_rms - first.log10_rms + 0.5 * math.log10(last.count / first.count)
    assert curve.log10[-1] == pytest.approx(norms, abs=1e-9)


def test_small_weights_are_still_to_blame(images: Tensor, classes: Tensor) -> None:
    model = net(nn.AvgPool2d)
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(0.2)
    report = probe(model, images, classes)
    assert report.verdict.backward == "vanishing"
    assert "weights" in report.prescription
    assert "neither weights nor dropout" not in report.prescription


def test_the_reason_names_the_norm_where_the_rms_falls_with_the_size_of_the_maps(
    images: Tensor, classes: Tensor
) -> None:
    reason = probe(net(nn.AvgPool2d), images, classes).verdict.findings[1].reason
    assert "the norm ×" in reason
    assert "where the number of values changes" in reason


class Shortcut(nn.Module):
    """A block that halves the map by a stride, and by pooling in the shortcut beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.pool = nn.Conv2d(8, 8, 2, stride=2), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pool(x) + self.main(x))


def test_a_pooling_in_a_shortcut_is_not_all_of_the_way(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Shortcut(), Shortcut(), nn.Conv2d(8, 8, 3))
    report = probe(model, images)
    curve = profile(report.layers, "backward")
    first, last = curve.layers[0].gradient, curve.layers[-1].gradient
    assert first is not None
    assert last is not None
    norms = last.log10_rms - first.log10_rms + 0.5 * math.log10(last.count / first.count)
    assert curve.log10[-1] == pytest.approx(norms, abs=1e-9)
