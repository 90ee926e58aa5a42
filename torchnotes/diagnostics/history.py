"""What a monitor keeps: one record for each logged step, and where its numbers go."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torchnotes.diagnostics.records import LayerSignal
from torchnotes.diagnostics.rows import row_of


@dataclass(frozen=True)
class StepRecord:
    """Everything measured at one logged training step.

    Attributes:
        step: number of the training step, from 0.
        layers: the records of the pass, in the order of execution; made when first looked at.
        forward_growth: factor on the activations' rms per layer; None where it could not be measured.
        backward_growth: factor on the gradients' rms per layer, from the last layer to the first.
        loss: what the user handed in, or None.
        learning_rate: that of the optimiser's first group; None without an optimiser.
        update_ratio: by parameter, rms of the step's change over rms of the parameter.
        dead: by layer, share of units that were zero for every sample in each of the last ``window`` logged steps.
        saturated: by layer, share of units that were on a flat end for every sample in each of them.
        gradient_noise: by parameter, share of its gradient's second moment that fluctuates from one logged step to
            the next, 0 (always the same gradient) to 1 (nothing but noise); empty until two steps are logged.
        nonfinite: how many values of activations, gradients and weights are infinities or NaNs.
        full: whether everything was measured, or the rms of the weight layers alone (``SignalMonitor(detail=…)``).
    """

    step: int
    layers: Sequence[LayerSignal]
    forward_growth: float | None
    backward_growth: float | None
    loss: float | None = None
    learning_rate: float | None = None
    update_ratio: dict[str, float] = field(default_factory=dict)
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    gradient_noise: dict[str, float] = field(default_factory=dict)
    nonfinite: int = 0
    full: bool = True

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each layer: ``pandas.DataFrame(record.rows())``."""
        rows = []
        for layer in self.layers:
            weight = f"{layer.name}.weight".lstrip(".")
            if weight not in self.update_ratio and layer.name in self.update_ratio:
                weight = layer.name  # a parameter that is used in a function gives its row its name
            extra = {
                "step": self.step,
                "loss": self.loss,
                "learning_rate": self.learning_rate,
                "update_ratio": self.update_ratio.get(weight),
                "gradient_noise": self.gradient_noise.get(weight),
                "dead_units": self.dead.get(layer.label),
                "saturated_units": self.saturated.get(layer.label),
            }
            rows.append({**extra, **row_of(layer)})
        return rows


Sink = Callable[[StepRecord], None]
"""Anything that takes a record: a function, a :class:`JsonLines`, the ``append`` of a list."""


class JsonLines:
    """Write one line of JSON for each layer of each logged step; NaN and infinities as None and words.

    Args:
        path: file to append to; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def __call__(self, record: StepRecord) -> None:
        """Append one record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        for row in record.rows():
            self._file.write(json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("-Infinity" if value < 0 else "Infinity")
    return value
