"""Expectations against closed forms, published numbers, and a simulation."""

import math

import numpy as np
import pytest

from experiments.mean_field import FUNCTIONS, expect

WIDTH, DEPTH = 256, 50
SIZES = [WIDTH] * (DEPTH + 1)


def growth(activation: str, variance: float) -> tuple[float, float]:
    found = expect(activation, SIZES, [variance] * DEPTH, 1.0)
    return found.forward_growth, found.backward_growth


@pytest.mark.parametrize(("times_n", "factor"), [(2.0, 1.0), (1.0, math.sqrt(0.5)), (256e-4, math.sqrt(0.0128))])
def test_relu_changes_the_second_moment_by_half_of_n_times_the_variance(times_n: float, factor: float) -> None:
    # Rounding only: E relu(z)² = E z²/2 exactly, and the midpoint rule is symmetric about the kink.
    assert growth("relu", times_n / WIDTH) == pytest.approx((factor, factor), rel=1e-12)


def test_leaky_relu_keeps_the_squared_slope_of_the_other_half() -> None:
    factor = math.sqrt((1 + 0.01**2) / 2)
    assert growth("leaky_relu", 1 / WIDTH) == pytest.approx((factor, factor), rel=1e-12)


def test_tanh_falls_like_one_over_twice_the_depth() -> None:
    # q' = q - 2q² + 17/3 q³ …, so 1/q grows by 2 a layer: q·2L → 1, with a correction of order ln L / L.
    last = expect("tanh", [WIDTH] * 2001, [1 / WIDTH] * 2000, 1.0).activations[-1]
    assert 10 ** (2 * last) * 2 * 2000 == pytest.approx(1.0, abs=0.02)


def test_sigmoid_settles_while_its_gradient_falls() -> None:
    found = expect("sigmoid", SIZES, [1 / WIDTH] * DEPTH, 1.0)
    mean_square = 10 ** (2 * found.activations[-1])  # of W a with n·variance = 1, so of a
    assert mean_square == pytest.approx(0.5**2 + 0.121**2, abs=5e-4)
    assert 10 ** (found.gradients[10] - found.gradients[11]) == pytest.approx(0.236, abs=5e-4)


@pytest.mark.parametrize(
    ("variance", "forward", "backward"),
    [("1/n_in", 1.00, 0.25), ("2/(n_in+n_out)", 1.60, 0.40), ("1/n_out", 4.00, 1.00)],
)
def test_a_narrowing_layer(variance: str, forward: float, backward: float) -> None:
    n_in, n_out = 1024, 256
    value = {"1/n_in": 1 / n_in, "2/(n_in+n_out)": 2 / (n_in + n_out), "1/n_out": 1 / n_out}[variance]
    # Second moments through one layer without an activation: n_in·variance forward, n_out·variance backward.
    assert 10 ** (2 * expect("tanh", [n_in, n_out], [value], 1.0).activations[0]) == pytest.approx(forward)
    relu = expect("relu", [n_in, n_in, n_out], [2 / n_in, value], 1.0)
    assert 10 ** (2 * (relu.gradients[0] - relu.gradients[1])) == pytest.approx(backward / 2)  # ½ for ReLU's slope


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_agrees_with_a_simulated_wide_layer(activation: str) -> None:
    rng = np.random.default_rng(0)
    function, derivative = FUNCTIONS[activation]
    z = rng.normal(0, math.sqrt(1.5), 400_000)
    found = expect(activation, [1, 1, 1], [1.5, 1.0], 1.0)
    # 400,000 draws: the mean square of each is known to about 0.4 %.
    assert 10 ** (2 * found.activations[1]) == pytest.approx(float(np.mean(function(z) ** 2)), rel=0.01)
    assert 10 ** (2 * found.gradients[0]) == pytest.approx(float(np.mean(derivative(z) ** 2)), rel=0.01)
