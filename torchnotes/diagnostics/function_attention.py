"""The two projections of ``nn.MultiheadAttention``, which it multiplies with without calling a module.

All of it is one function, ``F.multi_head_attention_forward``, and a function mode is shown that one call. What is
called in there is seen where the function runs without asking anew whether a mode wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F


def is_attention(function: Any, module: nn.Module | None) -> TypeGuard[FunctionType]:
    """Whether a function that a mode was shown is the whole of a module's attention, and its output the module's."""
    ours = isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
    return ours and function is F.multi_head_attention_forward and isinstance(function, FunctionType)


def opened(function: FunctionType) -> Callable[..., Any]:
    """The same code, that runs its steps where a mode is on; the function itself would show the mode itself for ever.

    Its first line asks ``has_torch_function(...)``, which is true while any mode is on. Here the answer is no.
    """
    names = {**function.__globals__, "has_torch_function": _nobody}
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    same = FunctionType(code, names, function.__name__, defaults, closure)
    same.__kwdefaults__ = function.__kwdefaults__
    return same


def _nobody(_: object) -> bool:
    return False


def projections(path: str, module: nn.MultiheadAttention) -> dict[str, nn.Parameter]:
    """The weights by what their rows are called: the module itself, for what comes in, and ``out_proj``.

    Of separate projections it is that of the values: they are the signal, queries and keys only weigh it. Empty where
    a weight is no parameter of the module, but made by a parametrisation.

    Args:
        path: the module's path in the model.
        module: it.
    """
    inside = f"{path}.".lstrip(".")
    packed = module.in_proj_weight is not None
    found = {
        path if packed else f"{inside}v_proj_weight": module.in_proj_weight if packed else module.v_proj_weight,
        f"{inside}out_proj": module.out_proj.weight,
    }
    known = {name: weight for name, weight in found.items() if isinstance(weight, nn.Parameter)}
    return known if len(known) == len(found) else {}


def makes_values(part: Tensor, weight: Tensor) -> bool:
    """Whether rows of a packed weight are those that make the values, with or without others: they are the last."""
    rows = part.dim() == 2 and part.shape[1] == weight.shape[1] and part.is_contiguous()
    return rows and part.storage_offset() - weight.storage_offset() + part.numel() == weight.numel()
