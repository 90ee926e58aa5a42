"""Regularisation terms of the cost: the notes' L1 and L2 penalties on a model's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from torchnotes._checks import describe
from torchnotes.ops._penalty import check_penalty
from torchnotes.ops.l1_penalty import l1_penalty
from torchnotes.ops.l2_penalty import l2_penalty

__all__ = ["Penalty"]

_NORMALISATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_PENALTIES: dict[str, Callable[[list[Tensor], float, int], Tensor]] = {"l1": l1_penalty, "l2": l2_penalty}


class Penalty:
    """The term a cost gains by regularisation: λ/(2m) Σ ‖W‖_F² or λ/(2m) Σ ‖W‖₁ over the weights of a model.

    Weights only, never biases: a weight matrix has nearly all the parameters, and a bias cannot make a unit depend
    more on its inputs. The γ and β of normalisation layers are left out too: there is no W to keep small in them. A
    weight shared by several layers counts once; a frozen one (``requires_grad=False``) does not count, since no
    gradient could shrink it.

    Call it with the model and add the result to the cost::

        penalty = Penalty("l2", lambd=0.7)
        cost = loss(model(x), y) + penalty(model, m=len(x))

    With ``m`` given here it is a function of the model alone, as `torchnotes.check_gradients` takes it.

    Args:
        kind: ``"l2"`` (weight decay) or ``"l1"`` (makes weights exactly 0 under a proximal step, small otherwise).
        lambd: λ ≥ 0, the strength.
        m: number of samples the cost is a mean over, where it is always the same.

    Raises:
        ValueError: another kind, λ negative, or m below 1.
        TypeError: λ is not a number, or m not a whole one.

    Source: the notes, "regularisation"; SPEC A14.

    >>> model = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> Penalty("l2", lambd=2.0)(model, m=6).item()  # 2/(2·6) · (9 + 9)
    3.0
    """

    def __init__(self, kind: Literal["l1", "l2"] = "l2", *, lambd: float, m: int | None = None) -> None:
        if kind not in _PENALTIES:
            raise ValueError(f"kind must be 'l1' or 'l2', got {describe(kind)}; 'l2' is the usual one.")
        check_penalty(lambd, 1 if m is None else m)
        self.kind = kind
        self.lambd = lambd
        self.m = m

    def __call__(self, model: nn.Module, m: int | None = None) -> Tensor:
        """Return the term for a cost that is a mean over ``m`` samples; 0 for a model without weights.

        Raises:
            TypeError: ``model`` is not a module, or ``m`` not a whole number.
            ValueError: ``m`` is below 1, or given neither here nor to the constructor.
        """
        if m is None:
            m = self.m
        if m is None:
            raise ValueError("m must be given, got None; pass penalty(model, m=len(x)) or Penalty(..., m=len(x)).")
        check_penalty(self.lambd, m)
        weights = list(self.weights(model).values())
        if not weights:
            return torch.zeros((), device=next((p.device for p in model.parameters()), None))
        return _PENALTIES[self.kind](weights, self.lambd, m)

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        """The parameters that are penalised, by name: every trainable one called a weight outside normalisation."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; pass the network itself.")
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for prefix, module in model.named_modules():
            if isinstance(module, _NORMALISATION):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                is_bias = "bias" in name or parameter.dim() == 0
                if is_bias or not parameter.requires_grad or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                found[f"{prefix}.{name}" if prefix else name] = parameter
        return found

    def __repr__(self) -> str:
        return f"Penalty({self.kind!r}, lambd={self.lambd}, m={self.m})"
