"""diagnose_fit: the notes' table, sampling error, the recipe, errors."""

import math

import pytest
import torch

from torchnotes.training import diagnose_fit


@pytest.mark.parametrize(
    ("train", "dev", "base", "bias", "variance", "verdict"),
    [
        (0.01, 0.11, 0.0, "low", "high", "high variance"),
        (0.15, 0.16, 0.0, "high", "low", "high bias"),
        (0.15, 0.30, 0.0, "high", "high", "high bias and high variance"),
        (0.005, 0.01, 0.0, "low", "low", "low bias, low variance"),
        (0.15, 0.16, 0.15, "low", "low", "low bias, low variance"),
    ],
)
@pytest.mark.parametrize("size", [None, 100_000])
def test_the_notes_table(train, dev, base, bias, variance, verdict, size):
    found = diagnose_fit(train, dev, base_error=base, n_train=size, n_dev=size)
    assert (found.bias.level, found.variance.level, found.verdict) == (bias, variance, verdict)


def test_the_recipe_goes_for_bias_first():
    both = diagnose_fit(0.15, 0.30).advice
    assert "bigger network" in both[0]
    assert any("more data" in step for step in both[2:])
    assert len(set(both)) == len(both)
    assert not any("data" in step for step in diagnose_fit(0.15, 0.16).advice)
    assert not any("bigger network" in step for step in diagnose_fit(0.01, 0.11).advice)
    assert diagnose_fit(0.005, 0.01).advice == ("nothing: the fit is good",)


def test_small_sets_leave_it_unclear():
    # 11 % of 30 samples is 3 wrong: its standard error is 6 percentage points
    found = diagnose_fit(0.01, 0.11, n_train=10_000, n_dev=30)
    assert found.variance.level == "unclear"
    assert found.variance.low < 0.02 < found.variance.high
    assert "variance unclear" in found.verdict
    assert "measure on more samples" in found.advice[0]
    # no error in 10 samples does not prove an error of 0
    assert diagnose_fit(0.0, 0.0, n_train=10, n_dev=10).bias.level == "unclear"


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    train, dev, n_train, n_dev = 0.05, 0.12, 400, 150
    draws = [
        (torch.rand(n, generator=generator) < rate).double().mean().item()
        for _ in range(600)
        for rate, n in ((train, n_train), (dev, n_dev))
    ]
    gaps = [
        diagnose_fit(a, b, n_train=n_train, n_dev=n_dev).variance for a, b in zip(draws[::2], draws[1::2], strict=True)
    ]
    covered = sum(gap.low <= dev - train <= gap.high for gap in gaps) / len(gaps)
    # 95 % of 600: a standard deviation of 0.9 %
    assert covered == pytest.approx(0.95, abs=0.03)


def test_the_standard_error_is_the_textbooks_for_many_samples():
    gap = diagnose_fit(0.1, 0.2, n_train=10**6, n_dev=10**6).variance
    assert gap.high - gap.low == pytest.approx(2 * 1.959964 * math.sqrt((0.09 + 0.16) / 10**6), rel=1e-3)


def test_a_test_error_above_dev_tells_of_tuning_to_the_dev_set():
    found = diagnose_fit(0.01, 0.02, test_error=0.10)
    assert found.dev_overfit.level == "high"
    assert "bigger dev set" in found.advice[-1]
    assert "tuning to the dev set: +8.0%, high" in str(found)
    assert diagnose_fit(0.01, 0.02, test_error=0.02).dev_overfit.level == "low"


def test_a_gap_equal_to_the_tolerance_is_low():
    assert diagnose_fit(0.01, 0.03).variance.level == "low"
    assert diagnose_fit(0.01, 0.0301).variance.level == "high"


@pytest.mark.parametrize(
    ("call", "wording"),
    [
        (lambda: diagnose_fit(15, 16), r"train_error must lie in \[0, 1\], got 15; .* divide percentages by 100"),
        (lambda: diagnose_fit(0.1, float("nan")), "dev_error must lie in"),
        (lambda: diagnose_fit(0.1, 0.1, base_error=-0.1), "base_error must lie in"),
        (lambda: diagnose_fit(0.1, 0.1, n_dev=0), "n_dev must be an integer of at least 1, got 0"),
        (lambda: diagnose_fit(0.1, 0.1, confidence=1.0), r"confidence must lie in \(0, 1"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, wording):
    with pytest.raises(ValueError, match=wording):
        call()
