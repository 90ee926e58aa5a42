"""The scales on which hyperparameters are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from torchnotes._checks import check_in_range, describe


class Dimension(Protocol):
    """One hyperparameter: how to draw it, and how to narrow it around the values that did well."""

    def draw(self, random: np.random.Generator) -> Any:
        """A value at random."""

    def narrowed(self, good: Sequence[Any], tried: int) -> Dimension:
        """The same scale over the range of the good ones among ``tried`` values, widened by the gap between values."""

    def suggest(self, trial: Any, name: str) -> Any:
        """Register the value that was drawn with an Optuna trial, and return it."""


@dataclass(frozen=True)
class Uniform:
    """A number on a linear scale, such as a keep_prob."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, -math.inf)

    def draw(self, random: np.random.Generator) -> float:
        """Uniform in [low, high]."""
        return float(random.uniform(self.low, self.high))

    def narrowed(self, good: Sequence[float], tried: int) -> Uniform:
        """The range of the good values."""
        return Uniform(*_around(good, self.low, self.high, tried))

    def suggest(self, trial: Any, name: str) -> float:
        """As Optuna's float."""
        return float(trial.suggest_float(name, self.low, self.high))


@dataclass(frozen=True)
class LogUniform:
    """A number whose order of magnitude is unknown, such as a learning rate: its logarithm is uniform.

    On a linear scale from 0.0001 to 1, nine draws in ten would lie above 0.1; here as many lie in each decade.
    """

    low: float = 1e-4
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, 0.0)

    def draw(self, random: np.random.Generator) -> float:
        """10^r with r uniform."""
        value = 10 ** random.uniform(math.log10(self.low), math.log10(self.high))
        return float(min(max(value, self.low), self.high))

    def narrowed(self, good: Sequence[float], tried: int) -> LogUniform:
        """The range of the good values, on the logarithm."""
        logs = [math.log10(value) for value in good]
        low, high = _around(logs, math.log10(self.low), math.log10(self.high), tried)
        return LogUniform(max(10**low, self.low), min(10**high, self.high))

    def suggest(self, trial: Any, name: str) -> float:
        """As Optuna's float on a log scale."""
        return float(trial.suggest_float(name, self.low, self.high, log=True))


@dataclass(frozen=True)
class OneMinusLog:
    """A β close to 1, such as a momentum: 1 − β is drawn on a log scale, for it is 1/(1 − β) that counts.

    From 0.9 to 0.9005 hardly anything changes, an average over 10 values; from 0.999 to 0.9995 the window doubles.
    """

    low: float = 0.9
    high: float = 0.999

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, 0.0)
        check_in_range(self.high, "high", 0.0, 1.0, high_open=True, remedy="β stays below 1")

    def _rest(self) -> LogUniform:
        return LogUniform(1 - self.high, 1 - self.low)

    def draw(self, random: np.random.Generator) -> float:
        """1 − 10^r with r uniform."""
        return 1 - self._rest().draw(random)

    def narrowed(self, good: Sequence[float], tried: int) -> OneMinusLog:
        """The range of the good values, on the logarithm of 1 − β."""
        rest = self._rest().narrowed([1 - value for value in good], tried)
        return OneMinusLog(max(1 - rest.high, self.low), min(1 - rest.low, self.high))

    def suggest(self, trial: Any, name: str) -> float:
        """As Optuna's float."""
        return float(trial.suggest_float(name, self.low, self.high))


@dataclass(frozen=True)
class Integer:
    """A whole number, such as of hidden units; ``log`` for one that spans orders of magnitude."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, float):
                raise TypeError(f"{name} must be a whole number, got float {value!r}; use Uniform or LogUniform.")
        _check_range(self.low, self.high, 0.0 if self.log else -math.inf)

    def draw(self, random: np.random.Generator) -> int:
        """Uniform over the whole numbers, or log-uniform and rounded."""
        if not self.log:
            return int(random.integers(self.low, self.high, endpoint=True))
        value = 10 ** random.uniform(math.log10(self.low - 0.4999), math.log10(self.high + 0.4999))
        return min(max(round(value), self.low), self.high)

    def narrowed(self, good: Sequence[int], tried: int) -> Integer:
        """The range of the good values."""
        if self.log:
            around = LogUniform(self.low, self.high).narrowed(good, tried)
            low, high = around.low, around.high
        else:
            low, high = _around(good, self.low, self.high, tried)
        bottom = math.floor(low)
        return Integer(bottom, max(math.ceil(high), bottom + 1), self.log)

    def suggest(self, trial: Any, name: str) -> int:
        """As Optuna's int."""
        return int(trial.suggest_int(name, self.low, self.high, log=self.log))


@dataclass(frozen=True)
class Choice:
    """One of several values, such as a batch size or the name of an activation: numbers, strings, booleans, None."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(values) < 2:
            raise ValueError(f"Choice must have at least 2 values, got {values!r}; leave out what is fixed.")
        for value in values:
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise TypeError(
                    f"the values of Choice must be numbers, strings, booleans or None, got {describe(value)}; "
                    "choose among names, and look the rest up in the objective."
                )
        object.__setattr__(self, "values", values)

    def draw(self, random: np.random.Generator) -> Any:
        """Each with the same chance."""
        return self.values[int(random.integers(len(self.values)))]

    def narrowed(self, good: Sequence[Any], tried: int) -> Choice | Fixed:
        """Those among the good."""
        left = [value for value in self.values if value in good]
        return Choice(*left) if len(left) > 1 else Fixed(left[0], self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        """As Optuna's categorical."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class Fixed:
    """What a choice narrows to when one value is left."""

    value: Any
    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """The value."""
        return self.value

    def narrowed(self, good: Sequence[Any], tried: int) -> Fixed:
        """The same."""
        return self

    def suggest(self, trial: Any, name: str) -> Any:
        """As Optuna's categorical over all that was possible."""
        return trial.suggest_categorical(name, list(self.values))


def _around(good: Sequence[float], low: float, high: float, tried: int) -> tuple[float, float]:
    """The range of the good values, widened by the mean gap between the values tried, inside the old range.

    The best may lie between a good value and the next one tried, which was not good.
    """
    inside = [min(max(value, low), high) for value in good]
    gap = (high - low) / tried
    return max(min(inside) - gap, low), min(max(inside) + gap, high)


def _check_range(low: Any, high: Any, bottom: float) -> None:
    for name, value in (("low", low), ("high", high)):
        check_in_range(value, name, bottom, math.inf, low_open=True, remedy="give the ends of the range as numbers")
    if not low < high:
        raise ValueError(f"low must be below high, got {low!r} and {high!r}; swap them, or leave out what is fixed.")
