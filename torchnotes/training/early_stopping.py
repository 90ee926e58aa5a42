"""Early stopping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes._checks import check_in_range, describe
from torchnotes.training.callbacks import Callback, Run


class EarlyStopping(Callback):
    """Stop where the dev cost is least, and keep the weights of that moment.

    The dev cost of a model that overfits falls and then rises. Training ends once it has not fallen for ``patience``
    epochs, and the weights with the lowest cost are put back.

    The notes' caution: this does two jobs with one knob, ending the optimisation of J and holding down the variance,
    so the two can no longer be worked on one at a time (orthogonalisation). L2 keeps them apart, at the price of
    trying several λ.

    With :func:`torchnotes.training.fit`, pass it as a callback. In a loop of one's own::

        stopping = EarlyStopping(patience=5)
        for epoch in range(1000):
            ...
            if stopping.update(dev_cost, model):
                break
        stopping.restore(model)

    Args:
        patience: epochs without a new lowest cost before stopping, at least 1.
        min_delta: by how much a cost must be lower to count.
        monitor: which entry of the history to watch.
        mode: ``"min"`` for a cost, ``"max"`` for an accuracy.

    Attributes:
        best: the best value so far.
        best_epoch: its epoch, counted from 1; 0 before the first.

    Memory: one copy of the model's state, on the model's device.

    Raises:
        ValueError: an option out of range, or :meth:`restore` before any update.
        KeyError: ``monitor`` is not in the history (``dev_loss`` needs a dev set).

    Source: the notes, "other regularisation methods" (early stopping); SPEC F8.

    >>> stopping, model = EarlyStopping(patience=2), nn.Linear(1, 1)
    >>> [stopping.update(cost, model) for cost in (3.0, 1.0, 2.0, 1.5)]
    [False, False, False, True]
    >>> stopping.best, stopping.best_epoch
    (1.0, 2)
    """

    def __init__(
        self, patience: int = 10, *, min_delta: float = 0.0, monitor: str = "dev_loss", mode: str = "min"
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an integer of at least 1, got {patience!r}; it is a number of epochs.")
        check_in_range(min_delta, "min_delta", 0.0, math.inf, remedy="it is how much lower a cost must be to count")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' for a cost or 'max' for an accuracy, got {mode!r}; pick one.")
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.mode = mode
        self.best = math.inf if mode == "min" else -math.inf
        self.best_epoch = 0
        self._epochs = 0
        self._weights: dict[str, Tensor] | None = None

    def update(self, value: float, model: nn.Module) -> bool:
        """Take in the dev cost of one more epoch; True if it is time to stop. NaN is never the best."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"value must be a number, got {describe(value)}; take it out of a tensor with .item().")
        self._epochs += 1
        better = value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta
        if better:
            self.best, self.best_epoch = float(value), self._epochs
            self._weights = {
                name: entry.detach().clone() for name, entry in model.state_dict().items() if isinstance(entry, Tensor)
            }
        return self._epochs - self.best_epoch >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back."""
        if self._weights is None:
            raise ValueError("there are no best weights before the first finite cost, got none yet; call update first.")
        with torch.no_grad():
            model.load_state_dict({**model.state_dict(), **self._weights})

    def on_epoch(self, run: Run) -> None:
        """Look at the epoch's record, and end the run if it is time."""
        record = run.history[-1]
        if self.monitor not in record:
            raise KeyError(
                f"EarlyStopping watches {self.monitor!r}, got a record of {', '.join(record)}; "
                "give fit a dev set, or set monitor."
            )
        if self.update(record[self.monitor], run.model):
            run.stopped = True

    def on_end(self, run: Run) -> None:
        """Put the best weights back."""
        if self._weights is not None:
            self.restore(run.model)

    def state_dict(self) -> dict[str, Any]:
        """The best weights and the count of epochs."""
        return {"best": self.best, "best_epoch": self.best_epoch, "epochs": self._epochs, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.best, self.best_epoch, self._epochs = state["best"], state["best_epoch"], state["epochs"]
        self._weights = state["weights"]
