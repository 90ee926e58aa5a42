"""Does the cost fall monotonically, as full-batch gradient descent without dropout should make it?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchnotes._checks import check_in_range


@dataclass(frozen=True)
class MonotonicReport:
    """What was found in a series of costs.

    Attributes:
        monotonic: whether no cost is above the one before, beyond the tolerance.
        rises: the positions of the costs that are.
        largest_rise: the largest rise, 0 if there is none.
        first_nonfinite: the position of the first NaN or infinite cost, or None.
    """

    monotonic: bool
    rises: tuple[int, ...]
    largest_rise: float
    first_nonfinite: int | None

    def __str__(self) -> str:
        if self.first_nonfinite is not None:
            return f"the cost is not finite from iteration {self.first_nonfinite} on: lower the learning rate"
        if self.monotonic:
            return "the cost falls monotonically"
        return (
            f"the cost rises {len(self.rises)} times, first at iteration {self.rises[0]}, by at most "
            f"{self.largest_rise:.3g}: with the whole training set in each step and dropout off, the learning rate is "
            "too high or the gradient is wrong"
        )


def check_monotonic(costs: Iterable[float], *, tolerance: float = 1e-6) -> MonotonicReport:
    """Check that the cost never rises from one iteration to the next.

    It should not where each step uses the whole training set, dropout is off (keep_prob = 1) and the learning rate is
    small enough. With dropout or mini-batches J is another function in each step, and a rise means nothing: so turn
    dropout off, check, and turn it on again.

    Args:
        costs: the cost at each iteration, in order.
        tolerance: a rise up to this part of the cost is round-off (float32 keeps about 1e-7).

    Returns:
        A :class:`MonotonicReport`; its text says what to look at.

    Raises:
        ValueError: fewer than two costs.

    Source: the notes, "understanding dropout"; SPEC F9.

    >>> check_monotonic([1.0, 0.5, 0.4]).monotonic
    True
    >>> print(check_monotonic([1.0, 0.5, 0.7]))  # doctest: +ELLIPSIS
    the cost rises 1 times, first at iteration 2, by at most 0.2: ...
    """
    check_in_range(tolerance, "tolerance", 0.0, 1.0, remedy="it is the part of the cost that is round-off")
    values = [float(cost) for cost in costs]
    if len(values) < 2:
        raise ValueError(f"costs must hold at least two iterations, got {len(values)}; record the cost at each one.")
    nonfinite = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    changes = [b - a for a, b in itertools.pairwise(values[:nonfinite])]
    rises = tuple(i for i, change in enumerate(changes, start=1) if change > tolerance * abs(values[i - 1]))
    largest = max((changes[i - 1] for i in rises), default=0.0)
    return MonotonicReport(not rises and nonfinite is None, rises, largest, nonfinite)
