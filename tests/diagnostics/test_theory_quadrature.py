"""Gaussian integrals against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchnotes.diagnostics.theory_quadrature import (
    activation_moments,
    as_elementwise,
    is_elementwise,
    is_homogeneous,
    shared_second_moment,
)


def test_rectifiers_are_exact():
    relu = activation_moments(torch.relu, 0.0, 3.0)
    assert relu.second == pytest.approx(1.5, rel=1e-12)
    assert relu.slope_second == pytest.approx(0.5, rel=1e-12)
    assert relu.mean == pytest.approx(math.sqrt(3 / (2 * math.pi)), rel=1e-6)
    assert relu.kurtosis == pytest.approx(5.0, rel=1e-12)
    assert relu.slope_kurtosis == pytest.approx(5.0, rel=1e-12)
    assert relu.response == pytest.approx(1.0, rel=1e-6)
    leaky = activation_moments(nn.LeakyReLU(0.1))
    assert leaky.second == pytest.approx((1 + 0.01) / 2, rel=1e-12)


def test_the_identity_has_the_kurtosis_of_a_normal():
    identity = activation_moments(lambda z: z, 0.0, 0.25)
    assert identity.second == pytest.approx(0.25)
    assert identity.kurtosis == pytest.approx(2.0)
    assert identity.slope_kurtosis == pytest.approx(2.0)


def test_smooth_functions_against_closed_forms():
    # E e^{2z} = e^{2q}; E cos²(z) = (1 + e^{-2q})/2; E erf-GELU slope and value from Frey and Hinton's integrals.
    assert activation_moments(torch.exp, 0.0, 0.5).second == pytest.approx(math.exp(1.0), rel=1e-9)
    assert activation_moments(torch.cos, 0.0, 2.0).second == pytest.approx((1 + math.exp(-4)) / 2, rel=1e-9)
    # E Φ(z)² for z ~ N(0, q): ¼ + arcsin(q/(1+q))/2π.
    q = 1.7
    phi = activation_moments(torch.special.ndtr, 0.0, q)
    assert phi.second == pytest.approx(0.25 + math.asin(q / (1 + q)) / (2 * math.pi), rel=1e-9)


def test_selu_has_its_fixed_point_at_unit_variance():
    selu = activation_moments(nn.SELU())
    assert selu.mean == pytest.approx(0.0, abs=1e-6)
    assert selu.second == pytest.approx(1.0, rel=1e-6)


def test_a_kink_off_centre_costs_less_than_a_thousandth():
    # E 1[z > 0.5], z ~ N(0, 1): the worst case, a jump of the slope between two nodes.
    shifted = activation_moments(lambda z: torch.relu(z - 0.5))
    assert shifted.slope_second == pytest.approx(0.308538, abs=1e-3)


@pytest.mark.parametrize("correlation", [-0.9, -0.3, 0.0, 0.4, 0.9, 0.99, 1.0])
def test_relu_of_correlated_samples_is_the_arc_cosine_kernel(correlation):
    theta = math.acos(correlation)
    kernel = (math.sin(theta) + (math.pi - theta) * correlation) / (2 * math.pi)  # Cho and Saul 2009, q = 1
    # The series is cut at 64 terms: what is missing is 2e-5 near c = 1.
    assert shared_second_moment(torch.relu, 1.0, correlation) == pytest.approx(kernel, abs=1e-4)


def test_elementwise_is_told_by_numbers():
    assert is_elementwise(torch.tanh)
    assert is_elementwise(nn.ReLU(inplace=True))
    assert not is_elementwise(nn.Softmax(-1))
    assert not is_elementwise(nn.LayerNorm(6))
    assert not is_elementwise(nn.Dropout(0.5))
    assert not is_elementwise(lambda x: x.sum())


def test_homogeneous_is_told_by_numbers():
    assert is_homogeneous(torch.relu)
    assert not is_homogeneous(torch.tanh)


def test_a_module_is_read_without_being_touched():
    module = nn.PReLU(init=0.1)
    function = as_elementwise(module)
    assert function(torch.tensor([-1.0], dtype=torch.float64)).item() == pytest.approx(-0.1)
    assert module.weight.dtype == torch.float32
    assert module.training
    assert as_elementwise(nn.Linear(3, 3)) is None


def test_a_function_that_is_not_elementwise_is_refused():
    with pytest.raises(ValueError, match="function must be elementwise, got an output of shape"):
        activation_moments(lambda z: z.sum().reshape(1))


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match="variance must be finite and at least 0"):
        activation_moments(torch.relu, 0.0, -1.0)
