"""The random walk of the scale at finite width, against simulation and closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.diagnostics._signals import mlp
from torchnotes.diagnostics.fluctuation import Step, backward_drift, forward_drift
from torchnotes.diagnostics.theory_quadrature import activation_moments

LN10 = math.log(10)


def test_he_net_drifts_like_the_published_random_walk():
    # Hanin and Nica 2020: ln of the squared norm ~ N(−β/2, β), β = 5 Σ 1/n.
    widths = [64, 32, 128, 16]
    beta = 5 * sum(1 / n for n in widths)
    drift = forward_drift([Step(n) for n in widths])
    assert drift.mean[-1] * 2 * LN10 == pytest.approx(-beta / 2)
    assert (drift.std[-1] * 2 * LN10) ** 2 == pytest.approx(beta)
    back = backward_drift([Step(n) for n in widths])
    assert back.mean[0] == pytest.approx(drift.mean[-1])
    assert back.std[0] == pytest.approx(drift.std[-1])


@pytest.mark.parametrize(("activation", "variance"), [(nn.ReLU, 2.0), (nn.Identity, 1.0), (nn.Tanh, 1.5)])
def test_simulated_nets_scatter_as_predicted(activation, variance):
    width, depth, seeds = 32, 12, 300
    final = []
    for seed in range(seeds):
        with torch.no_grad():
            h = torch.ones(1, width)
            for module in mlp(depth, width, activation, variance, seed):
                h = module(h)
        final.append(h.double().square().mean().sqrt().log10().item())
    # The pre-activation variance of tanh at 1.5/n settles where q = 1.5 E tanh²(√q z).
    q = 1.0
    if activation is nn.Tanh:
        for _ in range(200):
            q = 1.5 * activation_moments(torch.tanh, 0.0, q).second
    constants = activation_moments(activation(), 0.0, q)
    hidden = Step(width, constants.kurtosis, constants.slope_kurtosis, constants.response)
    # The last layer's own output is a mean of normal squares (κ = 2) after the walk of the hidden ones.
    walk = forward_drift([hidden] * (depth - 1))
    expected = math.sqrt(walk.std[-1] ** 2 + 2 / width / (2 * LN10) ** 2)
    # Standard error of a standard deviation from 300 draws is 4 %; the constant's own linearisation errs by about as
    # much at width 32: three of both in quadrature is 17 %.
    assert np.std(final) == pytest.approx(expected, rel=0.17)


def test_a_normalisation_forgets_the_forward_walk():
    drift = forward_drift([Step(16, response=0.0)] * 100)
    assert drift.std[-1] == pytest.approx(math.sqrt(5 / 16) / (2 * LN10))


def test_gradients_feel_the_scatter_of_the_forward_pass():
    indifferent = backward_drift([Step(64, response=0.5)] * 20)
    saturating = backward_drift([Step(64, response=0.5, slope_response=-0.4)] * 20)
    assert saturating.std[0] > indifferent.std[0]
