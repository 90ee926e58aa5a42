"""Layer by layer: what the weights do, what stands between them, and what the weights should have been."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from torchnotes.diagnostics.function_weights import FunctionLayer
from torchnotes.diagnostics.records import LayerSignal
from torchnotes.diagnostics.theory_lookup import keep_probability
from torchnotes.diagnostics.theory_quadrature import (
    Elementwise,
    activation_moments,
    as_elementwise,
    is_homogeneous,
)
from torchnotes.diagnostics.verdict_profile import spine


@dataclass(frozen=True, slots=True)
class Section:
    """A weight layer and what lies between it and the weight layer before.

    Attributes:
        head: the weight layer's record.
        gain: √(n_in E w²), its factor on the rms of what comes in; NaN where not known.
        ideal: the gain that would keep the rms of pre-activations from the layer before to this one, dropout aside;
            None where no gain does, or none can be named.
        keep: share that dropout keeps in between; 1 without dropout.
        activation: class name of the activation in between; None where no module is one.
        normalized: whether a normalisation lies in between.
        saturated: share of the activation's values on its flat ends; None where it has none.
        dead: share of exact zeros after the activation.
    """

    head: LayerSignal
    gain: float
    ideal: float | None
    keep: float
    activation: str | None
    normalized: bool
    saturated: float | None
    dead: float

    @property
    def target(self) -> float | None:
        """The gain that keeps the rms, dropout included: the critical variance after dropout is keep times as large."""
        return None if self.ideal is None else self.ideal * math.sqrt(self.keep)

    @property
    def excess(self) -> float:
        """log₁₀ of gain over target: what the weights add to the scale in this layer; 0 where not known."""
        if self.target is None or not self.gain > 0 or not math.isfinite(self.gain):
            return 0.0
        return math.log10(self.gain / self.target)


def sections(layers: Sequence[LayerSignal]) -> list[Section]:
    """One section for each weight layer, in order of execution."""
    ideals: dict[tuple[str, str], float | None] = {}
    heads = spine(layers)
    found = []
    for before, head in zip([None, *heads], heads, strict=False):
        start = before.order if before is not None else -1
        between = [layer for layer in layers if start < layer.order < head.order]
        activation = next((layer for layer in between if layer.role == "activation"), None)
        dropouts = [layer for layer in between if layer.role == "dropout"]
        normalized = any(layer.role == "normalization" for layer in between)
        found.append(
            Section(
                head=head,
                gain=gain_of(head),
                ideal=_ideal(before, head, activation, ideals),
                keep=math.prod(_keep(layer) for layer in dropouts),
                activation=activation.kind if activation is not None else None,
                normalized=normalized,
                saturated=activation.activation.share_saturated if activation is not None else None,
                dead=activation.activation.share_zero if activation is not None else 0.0,
            )
        )
    return _completed(found)


def is_drawn(layer: LayerSignal) -> bool:
    """Whether `initialize_` and `calibrate_` know a weight layer: not one used in a function, nor a recurrent one."""
    if isinstance(layer.module, FunctionLayer):
        return layer.module.drawn
    return not isinstance(layer.module, (nn.RNNBase, nn.RNNCellBase))


def _completed(found: list[Section]) -> list[Section]:
    """Where the signal could not be measured (it had overflowed) a function call is taken to do what the others do."""
    known = [s.ideal for s in found[1:] if s.activation is None and s.ideal is not None]
    if not known:
        return found
    middle = statistics.median(known)
    return [replace(s, ideal=middle) if s.ideal is None and s.activation is None else s for s in found]


def ideal_gain(function: Elementwise) -> float | None:
    """The gain before which φ keeps a signal: g² E φ(z)² = q for z ~ N(0, q), as far as there is one.

    A homogeneous φ has one for every q: g² = 1/E φ(z)² at q = 1, He's 2 for ReLU. A bounded one that passes through 0
    (tanh) has its critical point at q → 0, g = 1/φ'(0): above it gradients grow, below it the signal dies. One that
    does neither (the sigmoid, whose mean of ½ hides the signal) keeps gradients at no gain worth having. Any other is
    held at q = 1, where the data are.
    """
    ends = torch.tensor([-1e6, 1e6], dtype=torch.float64, device="cpu")
    with torch.no_grad():
        bounded = bool((function(ends).abs() < 1e3).all())
        zero = function(torch.zeros(1, dtype=torch.float64, device="cpu")).abs().item()
    if not bounded or is_homogeneous(function):
        second = activation_moments(function).second
        return 1 / math.sqrt(second) if second > 0 else None
    if zero > 1e-6:
        return None
    slope = activation_moments(function, 0.0, 1e-8).slope_second
    return 1 / math.sqrt(slope) if slope > 0 else None


def _ideal(
    before: LayerSignal | None,
    head: LayerSignal,
    activation: LayerSignal | None,
    known: dict[tuple[str, str], float | None],
) -> float | None:
    if before is None:
        return 1.0
    if activation is None or activation.module is None:
        return _measured_ideal(before, head)
    key = (activation.kind, repr(activation.module))
    if key not in known:
        function = as_elementwise(activation.module)
        known[key] = ideal_gain(function) if function is not None else None
    return known[key]


def _measured_ideal(before: LayerSignal, head: LayerSignal) -> float | None:
    """Where a function call stands in between and left no record: gain over the growth that was measured."""
    growth = head.activation.log10_rms - before.activation.log10_rms
    gain = gain_of(head)
    return gain / 10**growth if math.isfinite(growth) and gain > 0 and abs(growth) < 100 else None


def gain_of(head: LayerSignal) -> float:
    """√(n_in E w²) of a weight layer; 0 of weights that are all zero, NaN where not known."""
    if head.weight is None or head.fan_in is None or not math.isfinite(head.weight.log10_rms):
        return 0.0 if head.weight is not None and head.weight.log10_rms == -math.inf else math.nan
    return 10**head.weight.log10_rms * math.sqrt(head.fan_in)


def _keep(layer: LayerSignal) -> float:
    if layer.module is None or not layer.module.training:
        return 1.0
    keep = keep_probability(layer.module)
    return keep if keep else 1.0
