"""Do two sets come from the same distribution?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes._checks import check_in_range, check_tensor


@dataclass(frozen=True)
class DistributionReport:
    """What the comparison of two sets found.

    Attributes:
        same: whether nothing speaks against one distribution, at the significance asked for.
        p_value: the chance of a difference at least this large, anywhere, if there is only one distribution.
        worst_feature: the column that differs most; None for labels.
        statistics: per column the largest distance between the two cumulative distributions, in [0, 1]; for labels
            the distance between the two sets of class frequencies, Σ|p − q|/2.
        p_values: per column, before correcting for their number.
        significance: the chance of a false alarm that was accepted.
    """

    same: bool
    p_value: float
    worst_feature: int | None
    statistics: Tensor
    p_values: Tensor
    significance: float

    def __str__(self) -> str:
        where = "in the classes" if self.worst_feature is None else f"in feature {self.worst_feature}"
        verdict = "nothing speaks against one distribution" if self.same else "the distributions differ"
        return f"{verdict}: largest difference {float(self.statistics.max()):.3f} {where}, p = {self.p_value:.2g}"


def compare_distributions(first: Tensor, second: Tensor, *, significance: float = 0.01) -> DistributionReport:
    """Compare two sets, such as dev and test, feature by feature: were they drawn from one distribution?

    Real-valued columns: the two-sample Kolmogorov-Smirnov distance D = max|F₁ − F₂| with its asymptotic p-value,
    multiplied by the number of columns (Bonferroni), so that many columns raise no more false alarms than one. Integer
    labels (m,): Pearson's χ² over the class counts. Both see one column at a time: a difference only in how columns go
    together is not found.

    Args:
        first: (m₁, n) or (m₁, ...) real values, or (m₁,) integer labels.
        second: the same with m₂ rows.
        significance: accepted chance of a false alarm.

    Returns:
        A :class:`DistributionReport`.

    Raises:
        ValueError: different columns, fewer than 2 rows, or NaN.

    Source: the notes, "train, dev and test sets" (dev and test from the same distribution); SPEC E2.

    >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    >>> compare_distributions(x[:1000], x[1000:]).same
    True
    >>> print(compare_distributions(x[:1000], x[1000:] + torch.tensor([0.0, 0.5, 0.0])))
    the distributions differ: largest difference 0.202 in feature 1, p = 7.2e-18
    """
    check_in_range(significance, "significance", 0.0, 1.0, low_open=True, high_open=True, remedy="0.01 is usual")
    for name, value in (("first", first), ("second", second)):
        check_tensor(value, name)
        if value.dim() == 0 or len(value) < 2:
            raise ValueError(f"{name} must have at least 2 rows, got shape {tuple(value.shape)}; give it more samples.")
        if value.numel() == 0:
            raise ValueError(
                f"{name} must have at least one column, got shape {tuple(value.shape)}; check its features."
            )
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"both sets must have rows of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "compare inputs with inputs."
        )
    if first.dim() == 1 and not first.dtype.is_floating_point and not second.dtype.is_floating_point:
        statistic, p_value = _chi_squared(first, second)
        p_values, distances, worst = torch.tensor([p_value]), torch.tensor([statistic]), None
    else:
        a, b = (value.detach().double().reshape(len(value), -1) for value in (first, second))
        if bool(a.isnan().any()) or bool(b.isnan().any()):
            raise ValueError("both sets must be free of NaN, got some; clean the data first.")
        distances = torch.stack([_largest_distance(a[:, i], b[:, i]) for i in range(a.shape[1])])
        effective = len(a) * len(b) / (len(a) + len(b))
        p_values = torch.tensor([_kolmogorov(float(d), effective) for d in distances], dtype=torch.float64)
        worst = int(distances.argmax())
    overall = min(1.0, float(p_values.min()) * len(p_values))
    return DistributionReport(overall >= significance, overall, worst, distances, p_values, significance)


def _largest_distance(a: Tensor, b: Tensor) -> Tensor:
    """max|F_a − F_b| over all values, by counting in the sorted columns."""
    a, b = a.sort().values, b.sort().values
    at = torch.cat([a, b])
    below_a = torch.searchsorted(a, at, right=True).double() / len(a)
    below_b = torch.searchsorted(b, at, right=True).double() / len(b)
    return (below_a - below_b).abs().max()


def _kolmogorov(distance: float, effective: float) -> float:
    """P(D ≥ distance) = 2 Σ (−1)^{j−1} e^{−2 j² λ²} with Stephens' λ = (√m + 0.12 + 0.11/√m) D."""
    root = math.sqrt(effective)
    scale = (root + 0.12 + 0.11 / root) * distance
    if scale < 0.2:  # the series converges slowly there, and the chance is 1 to twelve digits
        return 1.0
    series = sum((-1) ** (j - 1) * math.exp(-2 * (j * scale) ** 2) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * float(series)))


def _chi_squared(first: Tensor, second: Tensor) -> tuple[float, float]:
    classes = torch.unique(torch.cat([first, second]))
    counts = torch.stack([(part[:, None] == classes).sum(0) for part in (first, second)]).double()  # (2, classes)
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    statistic = ((counts - expected).square() / expected).sum()
    freedom = len(classes) - 1
    distance = float((counts / counts.sum(1, keepdim=True)).diff(dim=0).abs().sum() / 2)
    if freedom == 0:
        return distance, 1.0
    return distance, float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic.cpu() / 2))
