"""Weights that stand out from all others, in a net whose normalisations keep gains from adding up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torchnotes.diagnostics.prescription_blame import Section
from torchnotes.diagnostics.prescription_record import CURES, Prescription
from torchnotes.diagnostics.records import Finding

STANDS_OUT = 0.5
"""Decades from the middle gain at which a weight stands out: three times as large, or a third."""


def of_outliers(chain: Sequence[Section], finding: Finding) -> Prescription | None:
    """Blame the few weights that are of another size than all the others; None where there are none.

    Behind a normalisation the scale is 1 whatever came before it: gains do not multiply up along the net, and what one
    layer's weights should be does not follow from the layer before. In such a net (one in four sections is normalised)
    a layer at fault is one that stands out from the middle of all √(n E w²). At most a quarter may, and together they
    have to make up half of the change.

    Args:
        chain: all sections of the net.
        finding: what one direction shows.
    """
    candidates = [weight for section in chain for weight in _weights(section)]
    if not candidates or 4 * sum(section.normalized for section in chain) < len(chain):
        return None
    middle = statistics.median(weight.gain for weight in candidates)
    off = [weight for weight in candidates if abs(weight.gain - middle) > STANDS_OUT]
    change = finding.departure if math.isfinite(finding.departure) else finding.change
    together = sum(weight.times * abs(weight.gain - middle) for weight in off)
    if not off or 4 * len(off) > len(candidates) or together < 0.5 * min(abs(change), 300.0):
        return None
    large = _sentence([weight for weight in off if weight.gain > middle], middle, "large")
    small = _sentence([weight for weight in off if weight.gain < middle], middle, "small")
    text = "; ".join(filter(None, (large, small))) + f"; bring them to the scale of the others ({CURES})."
    factors: dict[str, float] = {}
    for weight in off:
        factors.setdefault(weight.name, 10 ** (middle - weight.gain))
    return Prescription("weight scale", text, tuple(weight.label for weight in off), factors)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight by label and path, log₁₀ of its gain √(n_in E w²), and how often what it makes is multiplied up."""

    label: str
    name: str
    gain: float
    times: int = 1


def _weights(section: Section) -> list[_Weight]:
    """Those of one layer; where nobody saw inside ``nn.MultiheadAttention``, its second one too, that has no record.

    What comes into an attention is multiplied with itself there, queries by keys.
    """
    head, found = section.head, []
    if section.gain > 0 and math.isfinite(section.gain):
        times = 2 if head.kind == "MultiheadAttention" else 1
        found.append(_Weight(head.label, head.name, math.log10(section.gain), times))
    if isinstance(head.module, nn.MultiheadAttention):
        weight = head.module.out_proj.weight.detach()
        gain = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) / math.sqrt(weight.shape[0])
        if gain > 0 and math.isfinite(gain):
            name = f"{head.name}.out_proj".lstrip(".")
            found.append(_Weight(name, name, math.log10(gain)))
    return found


def _sentence(off: Sequence[_Weight], middle: float, size: str) -> str:
    if not off:
        return ""
    times = 10 ** abs(statistics.median(weight.gain for weight in off) - middle)
    names = ", ".join(f"`{weight.label}`" for weight in off[:4])
    names += f" and {len(off) - 4} more" if len(off) > 4 else ""
    return f"The weights of {names} are {times:.3g} times as {size} as those of the others"
