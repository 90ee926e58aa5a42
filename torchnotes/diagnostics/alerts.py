"""What a monitor notices by itself over training: said once, with the layer and the step where it began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torchnotes.diagnostics.growth import trunk
from torchnotes.diagnostics.history import StepRecord

Kind = Literal["non-finite", "chance", "dead", "saturated", "update too large", "update too small"]

# A step that changes a weight by a tenth of itself is no longer a small step; below 1e-7 of it float32 rounds it away.
LARGEST_UPDATE, SMALLEST_UPDATE = 0.1, 1e-7


@dataclass(frozen=True)
class Alert:
    """One thing noticed.

    Attributes:
        step: training step at which it was first seen.
        kind: what it is.
        layer: label of the layer, or name of the parameter; None for the whole net.
        text: a sentence that says what was seen and what it means.
    """

    step: int
    kind: Kind
    layer: str | None
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}"


class Watch:
    """Looks through each record for what is new.

    Args:
        patience: logged steps in a row after which a loss at chance level, or an update out of range, is reported.
        steps: training steps for which a loss must have stayed at chance level too: every net begins there.
    """

    def __init__(self, patience: int = 5, steps: int = 100) -> None:
        self.patience = patience
        self.steps = steps
        self._guessing_since: int | None = None
        self._classes: int | None = None  # of the first record: a net has the same number at every step
        self.alerts: list[Alert] = []
        self._seen: set[tuple[str, str | None]] = set()
        self._runs: dict[tuple[str, str | None], int] = {}

    def look(self, record: StepRecord) -> list[Alert]:
        """The alerts that this record gives rise to, none of them given before for its layer."""
        before = len(self.alerts)
        self._nonfinite(record)
        self._chance(record)
        for kind, shares in (("dead", record.dead), ("saturated", record.saturated)):
            for layer, share in shares.items():
                self._idle(record.step, kind, layer, share)  # type: ignore[arg-type]
        for name, ratio in record.update_ratio.items():
            self._update(record.step, name, ratio)
        return self.alerts[before:]

    def bad_loss(self, step: int) -> None:
        """Note that a step's loss was not finite."""
        self._say(step, "non-finite", "the loss", f"the loss is not finite from training step {step} on.")

    def _nonfinite(self, record: StepRecord) -> None:
        """Where it began: the weights if they are broken already, else the first activation, else the last gradient."""
        if record.nonfinite == 0 or ("non-finite", None) in self._seen:
            return
        forward = [layer for layer in record.layers if layer.activation.nonfinite]
        backward = [layer for layer in record.layers if layer.gradient is not None and layer.gradient.nonfinite]
        weights = [layer for layer in record.layers if layer.weight is not None and layer.weight.nonfinite]
        if weights:
            first = weights[0].label
            text = f"the weights of {first} hold non-finite values: an update before this step broke them."
        elif forward:
            first = forward[0].label
            or_before = "" if record.full else " or between it and the weight layer before"
            text = f"non-finite values begin in the activations of {first}{or_before}, from finite weights."
        elif backward:
            first = backward[-1].label
            text = f"non-finite values begin in the gradient that arrives at {first}, from finite activations."
        else:
            return
        self._seen.add(("non-finite", None))
        self._say(record.step, "non-finite", first, text)

    def _chance(self, record: StepRecord) -> None:
        """A cross-entropy of ln C is what a guess among C classes costs."""
        if record.loss is None:
            return
        if self._classes is None:
            rows = trunk(record.layers)
            if not rows:
                return
            self._classes = rows[-1].shape[1] if len(rows[-1].shape) > 1 else 1
        classes = self._classes
        guess = math.log(classes) if classes > 1 else math.log(2)
        if not abs(record.loss - guess) < 0.01 * guess:
            self._guessing_since = None
        elif self._guessing_since is None:
            self._guessing_since = record.step
        since = record.step if self._guessing_since is None else self._guessing_since
        at_chance = self._guessing_since is not None
        if self._lasts("chance", None, at_chance) and record.step - since >= self.steps:
            text = (
                f"the loss has stayed at {record.loss:.3f} for {record.step - since} steps: ln {max(classes, 2)} = "
                f"{guess:.3f}, what guessing among {max(classes, 2)} classes costs. Nothing is being learned."
            )
            self._say(record.step, "chance", None, text)

    def _idle(self, step: int, kind: Literal["dead", "saturated"], layer: str, share: float) -> None:
        if share <= 0.5:
            return
        what = "were zero for every sample" if kind == "dead" else "sat on a flat end for every sample"
        text = f"{100 * share:.0f} % of the units of {layer} {what} through the whole window: no gradient passes them."
        self._say(step, kind, layer, text)

    def _update(self, step: int, name: str, ratio: float) -> None:
        if self._lasts("update too large", name, ratio > LARGEST_UPDATE):
            text = f"each step changes {name} by {100 * ratio:.0f} % of its size (0.1 % is usual): lower the rate."
            self._say(step, "update too large", name, text)
        if self._lasts("update too small", name, 0 < ratio < SMALLEST_UPDATE):
            text = (
                f"each step changes {name} by {ratio:.1e} of its size, less than float32 resolves: it does not learn."
            )
            self._say(step, "update too small", name, text)

    def _lasts(self, kind: str, layer: str | None, holds: bool) -> bool:
        run = self._runs[kind, layer] = self._runs.get((kind, layer), 0) + 1 if holds else 0
        return run >= self.patience

    def _say(self, step: int, kind: Kind, layer: str | None, text: str) -> None:
        if (kind, layer) not in self._seen:
            self._seen.add((kind, layer))
            self.alerts.append(Alert(step, kind, layer, text))
