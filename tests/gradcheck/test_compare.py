"""The notes' ratio, by hand-computed values."""

import math

import pytest
import torch

from torchnotes.gradcheck import gradient_ratio
from torchnotes.gradcheck.compare import norm, read_ratio, worst_verdict


def test_three_four_five():
    # difference (3, 4): 5; norms 5 and 0
    assert gradient_ratio(torch.tensor([3.0, 4.0]), torch.zeros(2)) == 1.0
    # ‖(0, 2)‖ / (‖(3, 4)‖ + ‖(3, 2)‖)
    expected = 2 / (5 + math.sqrt(13))
    assert gradient_ratio(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0])) == pytest.approx(expected, rel=1e-7)


def test_parameters_are_joined_into_one_vector():
    whole = gradient_ratio(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0]))
    parts = gradient_ratio([torch.tensor([3.0]), torch.tensor([[4.0]])], [torch.tensor([3.0]), torch.tensor([[2.0]])])
    named = gradient_ratio(
        {"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"b": torch.tensor([2.0]), "w": torch.tensor([3.0])}
    )
    assert whole == parts == named


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_scale_does_not_matter_even_where_squares_would_underflow(scale):
    a = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    b = torch.tensor([3.0, 2.0], dtype=torch.float64) * scale
    assert gradient_ratio(a, b) == pytest.approx(2 / (5 + math.sqrt(13)), rel=1e-12)


def test_two_zero_gradients_agree_and_nan_does_not():
    assert gradient_ratio(torch.zeros(3), torch.zeros(3)) == 0.0
    assert math.isnan(gradient_ratio(torch.tensor([math.nan]), torch.tensor([1.0])))
    assert math.isnan(gradient_ratio(torch.tensor([1.0]), torch.tensor([math.inf])))


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.0, "correct"), (1e-7, "correct"), (1e-5, "suspect"), (1e-3, "wrong"), (1.0, "wrong"), (math.nan, "wrong")],
)
def test_the_notes_thresholds(ratio, verdict):
    assert read_ratio(ratio) == verdict


def test_norm_of_nothing_is_zero():
    assert norm() == norm(torch.empty(0)) == 0.0


def test_a_whole_is_as_bad_as_its_worst_part():
    assert worst_verdict(["correct", "suspect", "inconclusive"]) == "suspect"
    assert worst_verdict([]) == "correct"


@pytest.mark.parametrize(
    ("approx", "exact", "error", "words"),
    [
        (torch.ones(2), torch.ones(3), ValueError, r"agree in shape, got \(2,\) and \(3,\) for tensor 0"),
        ([torch.ones(2)], [torch.ones(2)] * 2, ValueError, r"same number of tensors, got 1 and 2"),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, ValueError, r"same parameters, got \['a'\] and \['b'\]"),
        ([1.0], [1.0], TypeError, r"approx\[0\] must be a torch.Tensor, got float 1.0"),
    ],
)
def test_errors_say_what_to_do(approx, exact, error, words):
    with pytest.raises(error, match=words):
        gradient_ratio(approx, exact)
