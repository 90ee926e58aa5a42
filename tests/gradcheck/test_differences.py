"""Numerical derivatives against the notes' figures, closed forms and the theory of their errors."""

import pytest
import torch

from torchnotes.gradcheck import numerical_gradient
from torchnotes.gradcheck.differences import STENCILS

ONE = torch.tensor(1.0, dtype=torch.float64)


def cube(t):
    return t**3


def test_two_sided_gives_the_notes_figure():
    value = numerical_gradient(cube, ONE, eps=0.01).item()
    assert value == pytest.approx(3.0001, abs=1e-12)
    assert value - 3 == pytest.approx(1e-4, abs=1e-12)


def test_one_sided_gives_the_notes_figure():
    value = numerical_gradient(cube, ONE, eps=0.01, scheme="forward").item()
    assert value == pytest.approx(3.0301, abs=1e-12)


@pytest.mark.parametrize(("scheme", "order"), [("forward", 1), ("central", 2), ("five-point", 4)])
def test_error_falls_with_the_order_of_the_scheme(scheme, order):
    # d/dθ exp(2θ) = 2 exp(2θ); at these steps truncation is far above round-off (1e-16/1e-2 = 1e-14).
    steps = (0.04, 0.02)
    errors = [
        abs(numerical_gradient(lambda t: (2 * t).exp(), ONE, eps=h, scheme=scheme) - 2 * (2 * ONE).exp()).item()
        for h in steps
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("scheme", list(STENCILS))
def test_weights_sum_to_zero_and_first_moment_to_one(scheme):
    stencil = STENCILS[scheme]
    assert sum(stencil.weights) == pytest.approx(0, abs=1e-15)
    assert sum(k * w for k, w in zip(stencil.offsets, stencil.weights, strict=True)) == pytest.approx(1)


def test_quadratic_form_has_the_closed_form_gradient():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    got = numerical_gradient(lambda t: t.reshape(-1) @ a @ t.reshape(-1) / 2, x, eps=1e-4)
    want = ((a + a.T) / 2 @ x.reshape(-1)).reshape(2, 3)
    # Central differences of a quadratic have no truncation: round-off 1e-15/1e-4 is left.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_argument_is_left_alone_and_non_contiguous_is_understood():
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3).T
    before = x.clone()
    got = numerical_gradient(lambda t: (t**2).sum(), x)
    torch.testing.assert_close(got, 2 * before, rtol=0, atol=1e-6)
    assert torch.equal(x, before)


def test_a_function_that_returns_a_view_of_its_argument_is_read_at_once():
    got = numerical_gradient(lambda t: t[0], torch.tensor([2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_large_float32_values_use_the_step_really_taken():
    # At θ = 1e6 a float32 moves in steps of 1/16: ε = 0.1 becomes 0.125, and only the step taken gives slope 1.
    theta = torch.tensor(1e6)
    assert numerical_gradient(lambda t: t, theta, eps=0.1).item() == 1.0


def test_empty_tensor_has_an_empty_gradient():
    assert numerical_gradient(lambda t: t.sum(), torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"theta": torch.tensor([1, 2])}, TypeError, r"theta must be a floating-point tensor.*theta\.float\(\)"),
        ({"theta": [1.0]}, TypeError, r"theta must be a torch.Tensor, got list"),
        ({"eps": 0.0}, ValueError, r"eps must lie in \(0, inf\), got 0.0; 1e-7 is usual"),
        (
            {"scheme": "backward"},
            ValueError,
            r"scheme must be one of 'forward', 'central', 'five-point', got 'backward'",
        ),
        (
            {"f": lambda t: t.repeat(2)},
            ValueError,
            r"f must return one number, got a tensor of shape \(2,\).*\.sum\(\)",
        ),
    ],
)
def test_errors_say_what_to_do(kwargs, error, words):
    arguments = {"f": lambda t: t.sum(), "theta": torch.ones(1), **kwargs}
    f, theta = arguments.pop("f"), arguments.pop("theta")
    with pytest.raises(error, match=words):
        numerical_gradient(f, theta, **arguments)
