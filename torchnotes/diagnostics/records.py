"""What is measured and what is concluded, as plain frozen records: every other file here reads or makes these."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Direction = Literal["forward", "backward"]
State = Literal["healthy", "vanishing", "exploding", "non-finite"]
Role = Literal["weight", "activation", "normalization", "dropout", "block", "other"]


@dataclass(frozen=True, slots=True)
class Moments:
    """The scale and shape of one tensor's values, in numbers that neither under- nor overflow.

    Everything but ``count``, ``share_zero`` and ``nonfinite`` is taken over the finite values only. Of an empty
    tensor, or one without a finite value, the numbers are NaN.

    Attributes:
        count: number of values.
        log10_rms: log₁₀ of the root mean square; −∞ when every value is zero.
        rms: root mean square, √(Σx²/n).
        mean: mean.
        std: standard deviation about the mean, with 1/n.
        max_abs: largest magnitude.
        share_zero: share of exact zeros among all values.
        share_saturated: share of values on a flat end of their activation (|tanh| or the sigmoid within 2 % of an
            end); None where the activation has no flat end or is not known.
        nonfinite: number of infinities and NaNs.
    """

    count: int
    log10_rms: float
    rms: float
    mean: float
    std: float
    max_abs: float
    share_zero: float
    share_saturated: float | None
    nonfinite: int


@dataclass(frozen=True, slots=True)
class LayerSignal:
    """One call of one module: what came out of it and, where a backward pass was run, the gradient that arrived there.

    Attributes:
        name: the module's path in the model, such as ``"blocks.7.fc"``; ``""`` is the model itself.
        kind: the module's class name.
        call: 0 for the first call of this module in the pass, 1 for the second: shared modules are kept apart.
        order: position in the order of execution, from 0, over all records.
        depth: number of weight layers run so far, this one included: a ReLU has the depth of the layer before it.
        role: what the module does: holds a weight matrix, applies an elementwise function, ...; a ``"block"`` is a
            module with children whose output none of them made (a residual sum).
        shape: shape of the output.
        dtype: dtype of the output, such as ``"float32"``.
        activation: moments of the output.
        gradient: moments of ∂loss/∂output; None where none arrived.
        weight: moments of the weight; None for a module without.
        weight_gradient: moments of ∂loss/∂weight; None where there is none.
        bias: moments of the bias; None for a module without.
        fan_in: inputs summed into one output value.
        fan_out: outputs that one input value reaches.
        module: the module itself, for those who need its function; not part of equality.
    """

    name: str
    kind: str
    call: int
    order: int
    depth: int
    role: Role
    shape: tuple[int, ...]
    dtype: str
    activation: Moments
    gradient: Moments | None = None
    weight: Moments | None = None
    weight_gradient: Moments | None = None
    bias: Moments | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    module: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The name, with the call where the module was called more than once: ``"cell#2"`` is its third call."""
        name = self.name or "(model)"
        return f"{name}#{self.call}" if self.call else name


@dataclass(frozen=True, slots=True)
class Finding:
    """What one direction shows: its state, where it begins, and the band it was held against.

    Attributes:
        direction: activations (``"forward"``) or gradients (``"backward"``).
        state: the conclusion.
        growth: factor on the rms per layer; None where fewer than two layers could be compared.
        change: log₁₀ of the whole change over the net, in the direction of the signal; NaN where not known.
        band: the changes, in log₁₀ rms, that chance and harmless unevenness may cause at these widths.
        first_bad_layer: label of the layer from which on the signal goes wrong; None when healthy.
        reason: the measurement in a sentence.
        furthest: label of the layer that is furthest out, where the signal comes back after it; None elsewhere.
        departure: log₁₀ of the change up to ``furthest``; NaN elsewhere.
    """

    direction: Direction
    state: State
    growth: float | None
    change: float
    band: tuple[float, float]
    first_bad_layer: str | None
    reason: str
    furthest: str | None = None
    departure: float = math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the measurements mean, for activations and for gradients separately.

    Attributes:
        forward: state of the activations.
        backward: state of the gradients; None when no backward pass was measured.
        first_bad_layer: label of the first layer that leaves what is expected, in the order in which the signal
            runs; None when all is healthy.
        reason: which factor did it, in a sentence.
        prescription: what cures it, in a sentence; empty when nothing need be cured.
        findings: the directions one by one, with their numbers.
    """

    forward: State
    backward: State | None
    first_bad_layer: str | None = None
    reason: str = ""
    prescription: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether neither direction is anything but healthy."""
        return self.forward == "healthy" and self.backward in ("healthy", None)

    def __str__(self) -> str:
        gradients = f"gradients {self.backward}" if self.backward else "gradients not measured"
        return f"activations {self.forward}, {gradients}"
