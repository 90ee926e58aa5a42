"""A prescription: cause and cure, in words and as factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal[
    "weight scale",
    "dropout",
    "activation",
    "saturation",
    "dead layer",
    "zero weights",
    "non-finite weights",
    "non-finite value",
    "normalisation without skip connections",
    "missing normalisation",
    "width",
    "unknown",
]

CURES = "`report.apply(model)`"


@dataclass(frozen=True)
class Prescription:
    """What is to blame and what cures it.

    Attributes:
        cause: which factor did it.
        text: cause and cure in a sentence or two.
        blamed: labels of the layers at fault, in the order in which the signal runs.
        factors: by what to multiply the weight of each layer, by the module's path; empty where no factor cures it.
    """

    cause: Cause
    text: str
    blamed: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
