"""A progress bar with an estimate of what is left, once a check takes longer than two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from torchnotes.gradcheck._evaluate import Evaluator
from torchnotes.gradcheck._objective import Objective

PATIENCE = 2.0
PIECE = 2048


class Progress:
    """Counts evaluations; shows a bar on standard error after two seconds, if that is a terminal."""

    def __init__(self, total: int, show: bool | None, title: str = "gradient check") -> None:
        self._total, self._show, self._title = total, show, title
        self._done = 0
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, count: int) -> None:
        """Note that so many evaluations are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=max(self._total, self._done))
        elif self._show is not False and time.monotonic() - self._start > PATIENCE:
            self._open()

    def expect(self, total: int) -> None:
        """Estimate anew how many there will be in all."""
        self._total = total

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True, force_terminal=True if self._show else None)
        if not console.is_terminal:
            self._show = False
            return
        columns = (TextColumn(self._title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=max(self._total, self._done), completed=self._done)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def progress(total: int, show: bool | None, title: str = "gradient check") -> Iterator[Progress]:
    """A progress display for about ``total`` evaluations; ``show`` None lets the terminal decide."""
    display = Progress(total, show, title)
    try:
        yield display
    finally:
        display.close()


class Watched:
    """An evaluator whose work is shown, in pieces small enough for a bar to move."""

    def __init__(self, inner: Evaluator, display: Progress) -> None:
        self._inner, self._display = inner, display
        self.name = inner.name
        self.objective: Objective = inner.objective

    def delta(self, t: int, index: Tensor, step: Tensor) -> Tensor:
        """See `Evaluator.delta`."""
        import torch

        size = 64 if self.name == "loop" else PIECE
        parts = []
        for i, h in zip(index.split(size), step.split(size), strict=True):
            parts.append(self._inner.delta(t, i, h))
            self._display.advance(len(i))
        return torch.cat(parts, 1)
