"""Where a monitor's records go, a step after they were measured: alerts, TensorBoard, the user's own sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchnotes.diagnostics.alerts import Watch
from torchnotes.diagnostics.history import Sink, StepRecord
from torchnotes.diagnostics.monitor_step import MeasuredStep
from torchnotes.diagnostics.units import UnitTracker

if TYPE_CHECKING:
    from torchnotes.diagnostics.tensorboard_sink import TensorBoardSink


TOGETHER, AT_LATEST = 8, 2.0
"""So many measured steps are handed on together, or those of so many seconds.

It is mostly code of Python's and TensorBoard's, and costs a training step three times as much cold as hot.
"""


class Delivery:
    """Brings each measured step to the host and hands it on: at once where the user has sinks, else some together.

    Args:
        board: TensorBoard's log, or None.
        sinks: also given each record.

    Attributes:
        watch: what was noticed.
        last: the record delivered last.
        last_full: the last in which everything was measured.
    """

    def __init__(self, board: TensorBoardSink | None, sinks: Sequence[Sink]) -> None:
        self._board = board
        self._sinks = sinks
        self._waiting: list[MeasuredStep] = []
        self.watch = Watch()
        self.last: StepRecord | None = None
        self.last_full: StepRecord | None = None

    def __call__(self, pending: MeasuredStep) -> None:
        """Take a step whose numbers are on their way since it ended."""
        self._waiting.append(pending)
        if self._sinks or len(self._waiting) == TOGETHER or time.time() - self._waiting[0].time > AT_LATEST:
            self.catch_up()

    def catch_up(self) -> None:
        """Wait for the numbers of all steps taken so far, and hand them on."""
        while self._waiting:
            self._hand_on(self._waiting.pop(0))

    def _hand_on(self, pending: MeasuredStep) -> None:
        self.last = record = pending.record()
        if record.full:
            self.last_full = record
        for step in pending.bad_losses():
            self.watch.bad_loss(step)
        self.watch.look(record)
        if self._board is not None:
            self._board(record, pending.time)
            for sample in pending.samples:
                values = np.asarray(pending.shipment.read(sample.place, sample.count))
                if np.isfinite(values).any():
                    self._board.histogram(pending.step, sample.part, sample.name, values[np.isfinite(values)])
        for sink in self._sinks:
            sink(record)

    def wants_histograms(self, count: int) -> bool:
        """Whether the count-th full record should come with histograms."""
        return self._board is not None and self._board.wants_histograms(count)

    def closing(self, units: UnitTracker) -> Iterator[Callable[[], Any]]:
        """What is to be done at the end, one by one: a failure of one need not keep the others from closing."""
        yield self.catch_up
        if self._board is not None:
            board = self._board
            yield lambda: board.close(units.maps(), [f"* {alert}" for alert in self.watch.alerts[:20]])
        for sink in self._sinks:
            if callable(close := getattr(sink, "close", None)):
                yield close
