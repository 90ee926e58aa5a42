"""Growth per layer: C1 to C4, the notes' linear nets at depth 150, and what a format cannot hold."""

import math

import pytest
import torch
from torch import nn

from torchnotes.diagnostics import probe


def scaled_identities(factor, depth=150, dtype=torch.float32):
    net = nn.Sequential(*[nn.Linear(2, 2, bias=False, dtype=dtype) for _ in range(depth)])
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(factor * torch.eye(2, dtype=dtype))
    return net


@pytest.mark.parametrize("factor", [1.5, 1.1, 0.9, 0.5])
def test_the_notes_linear_nets(factor):
    """ŷ = c^(L−1) x, and the same for the gradient: to 6 digits, though 0.5^150 = 7e-46 is 0 in float32."""
    report = probe(scaled_identities(factor), torch.tensor([[1.0, 1.0]]))
    assert report.forward_growth == pytest.approx(factor, rel=1e-6)
    assert report.backward_growth == pytest.approx(factor, rel=1e-6)
    assert len(report.layers) == 150
    state = "exploding" if factor > 1 else "vanishing"
    assert (report.verdict.forward, report.verdict.backward) == (state, state)
    assert report.layers[20].activation.rms == pytest.approx(factor**21, rel=1e-5)


@pytest.mark.parametrize("factor", [3.0, 0.2])
def test_past_the_ends_of_float32(factor):
    """3^150 = 4e71 overflows and 0.2^150 = 1e-105 underflows: the slope is that of the layers that can be held."""
    report = probe(scaled_identities(factor), torch.tensor([[1.0, 1.0]]))
    assert report.forward_growth == pytest.approx(factor, rel=1e-6)
    last = report.layers[-1].activation
    assert last.nonfinite == 2 if factor > 1 else last.log10_rms == -math.inf


def test_past_the_ends_backward():
    report = probe(scaled_identities(0.2), torch.tensor([[1.0, 1.0]]))
    assert report.backward_growth == pytest.approx(0.2, rel=1e-6)


def test_float64_holds_it_all():
    report = probe(scaled_identities(0.2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    assert report.layers[-1].activation.log10_rms == pytest.approx(150 * math.log10(0.2), abs=1e-9)


def test_one_layer_has_no_growth():
    report = probe(nn.Linear(3, 3), torch.ones(2, 3))
    assert (report.forward_growth, report.backward_growth) == (None, None)


def test_a_forward_pass_without_gradients_has_no_backward_growth():
    net = scaled_identities(0.9, depth=5).requires_grad_(False)
    report = probe(net, torch.ones(1, 2))
    assert report.forward_growth == pytest.approx(0.9, rel=1e-6)
    assert report.backward_growth is None
    assert report.verdict.backward is None
