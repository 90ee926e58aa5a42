"""Exponentially weighted average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor

from torchnotes._checks import check_in_range, describe


class ExponentialAverage:
    """Exponentially weighted average of a stream of numbers or tensors: v ← β v + (1 − β) θ, from v = 0.

    v weighs the value of k steps ago by (1 − β) βᵏ, which has fallen to 1/e after about 1/(1 − β) steps: the window.
    β = 0.9 averages over about 10 values, 0.98 over 50, 0.5 over 2. A longer window is smoother and lags more.

    After t values the weights add up to 1 − βᵗ and not to 1, so v starts far too low; v/(1 − βᵗ) corrects it.

    Args:
        beta: β in [0, 1).
        bias_correction: whether :attr:`value` and what :meth:`update` returns is v/(1 − βᵗ) or v itself.

    Memory: one number, or one tensor of the shape of the values. NaN and inf stay in the average, as they would in
    a mean.

    Raises:
        ValueError: β out of range, a tensor of another shape, or :attr:`value` before the first update.
        TypeError: a value that is neither a number nor a real floating-point tensor.

    Source: the notes, "exponentially weighted averages"; SPEC F2.

    >>> average = ExponentialAverage(beta=0.98)
    >>> [round(average.update(theta), 4) for theta in (40.0, 49.0)]
    [40.0, 44.5455]
    >>> round(0.0196 * 40.0 + 0.02 * 49.0, 4), round(average.uncorrected, 4)
    (1.764, 1.764)
    >>> round(average.window)
    50
    """

    def __init__(self, beta: float = 0.9, *, bias_correction: bool = True) -> None:
        check_in_range(beta, "beta", 0.0, 1.0, high_open=True, remedy="the average has a window of 1/(1−β) values")
        self.beta = beta
        self.bias_correction = bias_correction
        self.count = 0
        self._sum: Any = None

    @classmethod
    def over(cls, window: float, *, bias_correction: bool = True) -> ExponentialAverage:
        """An average over about ``window`` values: β = 1 − 1/window.

        >>> ExponentialAverage.over(50).beta
        0.98
        """
        check_in_range(window, "window", 1.0, float("inf"), remedy="an average takes at least one value")
        return cls(1 - 1 / window, bias_correction=bias_correction)

    @property
    def window(self) -> float:
        """About how many values count: 1/(1 − β)."""
        return 1 / (1 - self.beta)

    @property
    def uncorrected(self) -> Any:
        """The average v as it stands, without the correction."""
        if self._sum is None:
            raise ValueError("an average of no values has no value, got none yet; call update first.")
        return self._sum.clone() if isinstance(self._sum, Tensor) else self._sum

    @property
    def value(self) -> Any:
        """The average, corrected for its start unless ``bias_correction=False``."""
        v = self.uncorrected
        return v / (1 - self.beta**self.count) if self.bias_correction else v

    @overload
    def update(self, theta: float) -> float: ...
    @overload
    def update(self, theta: Tensor) -> Tensor: ...
    def update(self, theta: float | Tensor) -> Any:
        """Take in one value and return the average."""
        if isinstance(theta, Tensor):
            self._sum = self._updated_tensor(theta)
        else:
            if isinstance(theta, bool) or not isinstance(theta, (int, float)):
                raise TypeError(
                    f"theta must be a number or a floating-point tensor, got {describe(theta)}; convert it with float."
                )
            if isinstance(self._sum, Tensor):
                raise TypeError(f"theta must be a tensor as before, got {describe(theta)}; use one average per stream.")
            v = 0.0 if self._sum is None else self._sum
            self._sum = self.beta * v + (1 - self.beta) * theta
        self.count += 1
        return self.value

    def smooth(self, values: Iterable[Any]) -> list[Any]:
        """The average after each of the values, in order: the curve to draw.

        >>> [round(v, 3) for v in ExponentialAverage(0.5, bias_correction=False).smooth([1.0, 1.0, 1.0])]
        [0.5, 0.75, 0.875]
        """
        return [self.update(theta) for theta in values]

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {
            "beta": self.beta,
            "bias_correction": self.bias_correction,
            "count": self.count,
            "sum": None if self._sum is None else self.uncorrected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        missing = {"beta", "bias_correction", "count", "sum"} - state.keys()
        if missing:
            raise ValueError(
                f"state must hold beta, bias_correction, count and sum, got one without {', '.join(sorted(missing))}; "
                "pass what state_dict returned."
            )
        v = state["sum"]
        self.beta, self.bias_correction, self.count = state["beta"], state["bias_correction"], state["count"]
        self._sum = v.clone() if isinstance(v, Tensor) else v

    @torch.no_grad()
    def _updated_tensor(self, theta: Tensor) -> Tensor:
        if not theta.dtype.is_floating_point:
            raise TypeError(
                f"theta must be a number or a floating-point tensor, got {describe(theta)}; convert it with float."
            )
        v = self._sum
        if v is None:
            return theta * (1 - self.beta)
        if not isinstance(v, Tensor):
            raise TypeError(f"theta must be a number as before, got {describe(theta)}; use one average per stream.")
        if v.shape != theta.shape:
            raise ValueError(
                f"theta must have the shape of the values before, {tuple(v.shape)}, got {tuple(theta.shape)}; "
                "use one average per stream."
            )
        return torch.lerp(v, theta.to(v), 1 - self.beta)
