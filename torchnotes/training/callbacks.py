"""What a callback sees of a run, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer


@dataclass
class Run:
    """A training run as its callbacks see it.

    Attributes:
        model: the model itself, not its wrapper for several processes.
        optimizer: the optimiser.
        epoch: epochs done.
        step: optimiser steps done.
        history: one record per epoch done: ``epoch``, ``train_loss``, ``lr``, and with a dev set ``dev_loss`` and the
            metrics.
        stopped: set it to True to end the run after this step or epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False


class Callback:
    """Override what is needed; what ``state_dict`` returns is kept in checkpoints."""

    def on_step(self, run: Run) -> None:
        """Called after each optimiser step."""

    def on_epoch(self, run: Run) -> None:
        """Called after each epoch, its record already in ``run.history``."""

    def on_end(self, run: Run) -> None:
        """Called once, when the run ends."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, in tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
