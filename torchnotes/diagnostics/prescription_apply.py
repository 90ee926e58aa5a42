"""Carrying a prescription out: multiply the weights by its factors, in place."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from torchnotes._checks import describe
from torchnotes.diagnostics.prescription_record import Prescription


@dataclass(frozen=True)
class AppliedPrescription:
    """What was multiplied by what; prints as a table.

    Attributes:
        factors: the factor of each weight, by the parameter's name.
        skipped: the parameters that were left, with the reason.
    """

    factors: Mapping[str, float]
    skipped: Mapping[str, str]

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="Weights rescaled", title_justify="left", show_edge=False)
        table.add_column("parameter", overflow="fold")
        table.add_column("multiplied by", justify="right")
        for name, factor in self.factors.items():
            table.add_row(name, f"{factor:.4g}")
        for name, reason in self.skipped.items():
            table.add_row(name, reason)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=100, color_system=None).print(self)
        return out.getvalue().rstrip()


def apply_prescription(model: nn.Module, prescribed: Prescription | Sequence[Prescription]) -> AppliedPrescription:
    """Multiply the weights by the prescribed factors, in place.

    Args:
        model: the model that was probed, or one of the same structure.
        prescribed: one prescription, or those of both directions (see :func:`prescriptions`); a layer that two of
            them name is scaled by the first.

    Returns:
        What was done, as a table. Take the report again to see the difference.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: no factor cures it: the message says what does; or the model lacks a prescribed layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; pass the model that was probed.")
    model = getattr(model, "_orig_mod", model)
    given = [prescribed] if isinstance(prescribed, Prescription) else list(prescribed)
    wanted: dict[str, float] = {}
    for prescription in given:
        for name, factor in prescription.factors.items():
            wanted.setdefault(name, factor)
    if not wanted:
        words = " ".join(prescription.text for prescription in given) or "the report is healthy."
        raise ValueError(f"prescribed must hold factors to apply, got none: no scaling of weights cures it. {words}")
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in wanted if name not in modules and name not in parameters]
    if missing:
        raise ValueError(
            f"model must have the layers that were probed, got none named {missing[0]!r} in {type(model).__name__}; "
            "apply the prescription to the model whose report it is."
        )
    return _scale(modules, parameters, wanted)


def _scale(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], wanted: Mapping[str, float]
) -> AppliedPrescription:
    factors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    seen: set[int] = set()
    for name, factor in wanted.items():
        # A layer that is a function call is called by its parameter's name.
        module = modules.get(name)
        key = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        weight = parameters.get(name) if module is None else module._parameters.get(key)
        parameter = name if module is None else f"{name}.{key}".lstrip(".")
        if module is not None and parametrize.is_parametrized(module, "weight"):
            skipped[parameter] = "parametrised: its scale is set by the parametrisation"
        elif weight is None:
            skipped[parameter] = "has no weight of its own"
        elif id(weight) in seen:
            skipped[parameter] = "shared with a layer above"
        else:
            seen.add(id(weight))
            with torch.no_grad():
                weight.mul_(factor)
            factors[parameter] = factor
    return AppliedPrescription(factors, skipped)
