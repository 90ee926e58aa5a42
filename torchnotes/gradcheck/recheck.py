"""Checking at random initialisation and again after some training; and a word against checking at every step."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from torchnotes._checks import describe
from torchnotes.gradcheck.report import GradientReport

EVERY_STEP = 4  # checks in a row, each after the parameters have moved


class GradcheckInTrainingWarning(UserWarning):
    """Gradient checking is being used as a part of training."""


_history: WeakKeyDictionary[nn.Module, tuple[int, torch.Tensor]] = WeakKeyDictionary()
_quiet: list[bool] = []


def warn_if_training(model: nn.Module) -> None:
    """Warn where one model is checked again and again, its parameters having moved each time (SPEC D6)."""
    now = torch.tensor([float(p.detach().abs().double().sum()) for p in model.parameters()])
    count, before = _history.get(model, (0, now))
    count = count + 1 if before.shape == now.shape and not torch.equal(before, now) else 1
    _history[model] = (count, now)
    if count == EVERY_STEP and not _quiet:
        warnings.warn(
            f"check_gradients has been called {count} times on a model whose parameters moved in between: it is a "
            "debugging tool, thousands of times slower than a backward pass, and no part of training. "
            "Use recheck_after(steps) to check at initialisation and once more later.",
            GradcheckInTrainingWarning,
            stacklevel=3,
        )


class recheck_after:
    """Check a model at its first step and again after some steps of training, and do nothing in between.

    A gradient can be right where W and b are near 0 and wrong where they have grown, so the notes ask for a second
    check. Call the object once in every step of the loop, with the arguments of `check_gradients`:

    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> recheck = recheck_after(5)
    >>> for step in range(10):
    ...     report = recheck(model, x, y, loss=nn.functional.mse_loss)
    ...     optimizer.zero_grad()
    ...     nn.functional.mse_loss(model(x), y).backward()
    ...     optimizer.step()
    >>> [(step, report.verdict) for step, report in recheck.reports.items()]
    [(0, 'correct'), (5, 'correct')]

    Args:
        *steps: after how many steps to check again; one number or several.

    Attributes:
        reports: the report of every check made, by step.

    Raises:
        TypeError: a step is not a whole number.
        ValueError: a step is not positive, or none is given.

    Source: the notes, "notes on implementing gradient checking"; SPEC D6, D10.
    """

    def __init__(self, *steps: int) -> None:
        for step in steps:
            if isinstance(step, bool) or not isinstance(step, int):
                raise TypeError(f"steps must be whole numbers, got {describe(step)}; recheck_after(100) is usual.")
        if not steps or min(steps) < 1:
            raise ValueError(f"steps must be positive, got {steps}; the first step is checked anyway.")
        self.reports: dict[int, GradientReport] = {}
        self._due = {0, *steps}
        self._step = 0

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> GradientReport | None:
        """Count one step; return a report where a check was due, else None."""
        from torchnotes.gradcheck.check import check_gradients

        step, self._step = self._step, self._step + 1
        if step not in self._due:
            return None
        _quiet.append(True)
        try:
            self.reports[step] = check_gradients(model, *args, **kwargs)
        finally:
            _quiet.pop()
        return self.reports[step]
