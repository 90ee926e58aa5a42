"""Bias or variance: what the errors say, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from torchnotes._checks import check_in_range

Level = Literal["low", "high", "unclear"]

AGAINST_BIAS = (
    "train a bigger network: more layers or more units",
    "train longer, or with another optimiser (momentum, RMSprop, Adam)",
    "try another architecture",
)
AGAINST_VARIANCE = (
    "get more data, or augment what there is",
    "regularise: L2, dropout, early stopping",
    "try another architecture",
)


@dataclass(frozen=True)
class Gap:
    """A difference of two error rates.

    Attributes:
        value: the difference as measured.
        low: lower end of its confidence interval; equal to ``value`` where no sample sizes were given.
        high: upper end.
        level: ``"high"`` if the interval lies above the tolerance, ``"low"`` if below, ``"unclear"`` if it does not
            decide.
    """

    value: float
    low: float
    high: float
    level: Level


@dataclass(frozen=True)
class FitDiagnosis:
    """What is wrong with a fit.

    Attributes:
        bias: training error above the base error: what the model could still learn from its own training set.
        variance: dev error above training error: what it does not carry over.
        dev_overfit: test error above dev error: how far choices were tuned to the dev set; None without a test error.
        advice: what to do, in order: bias first, then variance.
    """

    bias: Gap
    variance: Gap
    dev_overfit: Gap | None
    advice: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """In the notes' words, such as ``"high variance"`` or ``"low bias, low variance"``."""
        names = [name for name, gap in (("bias", self.bias), ("variance", self.variance)) if gap.level == "high"]
        if names:
            return "high " + " and high ".join(names)
        if self.bias.level == self.variance.level == "low":
            return "low bias, low variance"
        unclear = [name for name, gap in (("bias", self.bias), ("variance", self.variance)) if gap.level == "unclear"]
        return f"{' and '.join(unclear)} unclear: more samples are needed to tell"

    def __str__(self) -> str:
        rows = [("bias", self.bias), ("variance", self.variance), ("tuning to the dev set", self.dev_overfit)]
        lines = [self.verdict]
        for name, gap in rows:
            if gap is not None:
                spread = f" ({gap.low:+.1%} to {gap.high:+.1%})" if gap.low != gap.high else ""
                lines.append(f"  {name}: {gap.value:+.1%}{spread}, {gap.level}")
        return "\n".join(lines + [f"  - {step}" for step in self.advice])


def diagnose_fit(
    train_error: float,
    dev_error: float,
    *,
    test_error: float | None = None,
    base_error: float = 0.0,
    n_train: int | None = None,
    n_dev: int | None = None,
    n_test: int | None = None,
    tolerance: float = 0.02,
    confidence: float = 0.95,
) -> FitDiagnosis:
    """Tell bias from variance by the errors on the training and the dev set, and say what to do.

    =============  ====  ====  ====  =====  ===============
    training set    1 %  15 %  15 %  0.5 %  15 %, base 15 %
    dev set        11 %  16 %  30 %    1 %  16 %
    bias            low  high  high    low  low
    variance       high   low  high    low  low
    =============  ====  ====  ====  =====  ===============

    Bias is measured from the base error, the least that anyone can reach (a person, say): where that is 15 %, a model
    at 15 % has learnt all there is.

    An error rate p measured on m samples has the standard error √(p(1 − p)/m); with the sample sizes given, a gap
    within its own uncertainty is called unclear and not high or low. (p is taken a little inside 0…1, as Agresti and
    Coull do, so that 0 errors in 10 samples is not taken for certainty. Training error is taken as if on fresh
    samples.)

    The recipe: first the bias, until the training set is fitted; then the variance; regularisation against variance
    costs a little bias, and a bigger network hardly any variance if it is regularised.

    Args:
        train_error: share of wrong answers on the training set, in [0, 1].
        dev_error: on the dev set.
        test_error: on the test set, if it has been used.
        base_error: the least error possible.
        n_train: size of the training set.
        n_dev: size of the dev set.
        n_test: size of the test set.
        tolerance: a gap up to this is low (2 percentage points).
        confidence: of the intervals.

    Returns:
        A :class:`FitDiagnosis`; printed, it says all of it.

    Raises:
        ValueError: an error rate outside [0, 1] (percentages must be divided by 100), or a size below 1.

    Source: the notes, "bias and variance", "the basic recipe"; SPEC F10.

    >>> print(diagnose_fit(0.01, 0.11))
    high variance
      bias: +1.0%, low
      variance: +10.0%, high
      - get more data, or augment what there is
      - regularise: L2, dropout, early stopping
      - try another architecture
    >>> diagnose_fit(0.15, 0.16).verdict, diagnose_fit(0.15, 0.16, base_error=0.15).verdict
    ('high bias', 'low bias, low variance')
    """
    rates = {"train_error": train_error, "dev_error": dev_error, "base_error": base_error}
    if test_error is not None:
        rates["test_error"] = test_error
    for name, rate in rates.items():
        check_in_range(rate, name, 0.0, 1.0, remedy="it is a share of the samples: divide percentages by 100")
    for name, size in (("n_train", n_train), ("n_dev", n_dev), ("n_test", n_test)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}; it is the number of samples.")
    check_in_range(tolerance, "tolerance", 0.0, 1.0, remedy="0.02 calls a gap of two percentage points low")
    check_in_range(confidence, "confidence", 0.0, 1.0, low_open=True, high_open=True, remedy="0.95 is usual")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    train = train_error, _variance(train_error, n_train, z)
    dev = dev_error, _variance(dev_error, n_dev, z)
    bias = _gap((base_error, 0.0), train, z, tolerance)
    variance = _gap(train, dev, z, tolerance)
    overfit = None
    if test_error is not None:
        overfit = _gap(dev, (test_error, _variance(test_error, n_test, z)), z, tolerance)
    return FitDiagnosis(bias, variance, overfit, _advice(bias, variance, overfit))


def _variance(rate: float, size: int | None, z: float) -> float:
    """Squared standard error of an error rate (0 where the size is not known), p drawn z²/2 samples inside."""
    if size is None:
        return 0.0
    inside = (rate * size + z * z / 2) / (size + z * z)
    return inside * (1 - inside) / (size + z * z)


def _gap(below: tuple[float, float], above: tuple[float, float], z: float, tolerance: float) -> Gap:
    value = above[0] - below[0]
    half = z * math.sqrt(above[1] + below[1])
    # A gap that is the tolerance to round-off (0.03 − 0.01) is not above it.
    edge = tolerance + 1e-12
    level: Level = "high" if value - half > edge else "low" if value + half <= edge else "unclear"
    return Gap(value, value - half, value + half, level)


def _advice(bias: Gap, variance: Gap, overfit: Gap | None) -> tuple[str, ...]:
    steps: list[str] = []
    if bias.level == "high":
        steps += AGAINST_BIAS
    if variance.level == "high":
        steps += [step for step in AGAINST_VARIANCE if step not in steps]
    if "unclear" in (bias.level, variance.level):
        steps.append("measure on more samples before acting on what is unclear")
    if overfit is not None and overfit.level == "high":
        steps.append("get a bigger dev set: choices have been tuned to this one")
    return tuple(steps) or ("nothing: the fit is good",)
