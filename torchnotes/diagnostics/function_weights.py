"""Weights that a model multiplies with by calling a function: ``F.linear(x, self.up)``, ``x @ self.up``.

No hook sees them, for no module is called. Whoever sees functions run (:mod:`torchnotes.diagnostics.function_calls`)
shows each of them here, and those that are layers get the record that a module would have got: with the parameter's
path for a name, so that blame can be read and the cure applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.diagnostics.capture import Capture, role_of
from torchnotes.diagnostics.captured import Site
from torchnotes.diagnostics.function_attention import makes_values, projections
from torchnotes.diagnostics.records import Role

_PRODUCTS = frozenset("matmul __matmul__ mm".split())
_NORMALISATIONS = frozenset("layer_norm rms_norm group_norm instance_norm batch_norm".split())


class FunctionLayer(nn.Module):
    """A layer that is a call of a function, in the shape of a module: records ask for its weight and fans.

    Args:
        weight: the parameter; None of a normalisation without one.
        bias: the bias; None without.
        transposed: whether the weight is (n_in, n_out) rather than (n_out, n_in).
        drawn: whether ``initialize_`` would draw the weight: that of an attention it does, for that is a module.
    """

    def __init__(
        self, weight: nn.Parameter | None, bias: nn.Parameter | None, *, transposed: bool = False, drawn: bool = False
    ) -> None:
        super().__init__()
        self.drawn = drawn
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.transposed = transposed


class FunctionWeights:
    """Recognises the layers among the functions that a model calls, and has them recorded.

    A parameter whose own module counts as a layer is left to that module's record; but the two projections of an
    attention have a row each (:mod:`torchnotes.diagnostics.function_attention`).

    Args:
        model: the model.
        capture: what records the pass.
    """

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        self._capture = capture
        self._names: dict[int, str] = {}
        self._kinds: dict[int, str] = {}  # where it is not the function's name
        self._counts: dict[str, int] = {}
        for path, module in model.named_modules():
            if role_of(module) != "weight":
                for key, parameter in module.named_parameters(recurse=False):
                    self._names[id(parameter)] = f"{path}.{key}".lstrip(".")
            if isinstance(module, nn.MultiheadAttention):
                for name, parameter in projections(path, module).items():
                    self._names[id(parameter)] = name
                    self._kinds[id(parameter)] = type(module).__name__ if name == path else "Linear"

    def begin(self) -> None:
        """Count the calls of a new pass."""
        self._counts.clear()

    def __call__(
        self, kind: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor, inside: str
    ) -> tuple[str, int] | None:
        """Record a call if it is a layer.

        Args:
            kind: the function's name.
            args: its positional arguments.
            kwargs: its keyword arguments.
            output: what it returned.
            inside: path of the module whose forward called it.

        Returns:
            What its record is called, and how many calls of that name came before; None where it is no layer.
        """
        if not self._capture.listens:
            return None
        role: Role
        if kind == "linear" or kind in _PRODUCTS:
            layer = self._layer(kind, args, kwargs)
            if layer is None:
                return None
            role, name = "weight", self._names[id(layer.weight)]
            kind = self._kinds.get(id(layer.weight), kind)
        elif kind in _NORMALISATIONS:
            layer, role, name = FunctionLayer(None, None), "normalization", f"{inside}.{kind}()".lstrip(".")
        else:
            return None
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        self._capture.take_called(Site(name, layer, role, None, number, kind=kind), output)
        return name, number

    def _layer(self, kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> FunctionLayer | None:
        given = [*args, *kwargs.values()]
        if len(given) < 2 or not isinstance(given[1], Tensor) or given[1].dim() != 2:
            return None
        weight, swapped = self._parameter(given[1])
        if weight is None:
            return None
        bias = next((a for a in given[2:] if isinstance(a, nn.Parameter)), None)
        drawn = id(weight) in self._kinds
        return FunctionLayer(weight, bias, transposed=(kind != "linear") != swapped, drawn=drawn)

    def _parameter(self, tensor: Tensor) -> tuple[nn.Parameter | None, bool]:
        """The parameter of the model that a tensor is, or is the transpose or the part of; and whether it is turned."""
        if id(tensor) in self._names and isinstance(tensor, nn.Parameter):
            return tensor, False
        base = None if tensor.is_inference() else tensor._base
        if isinstance(base, nn.Parameter) and id(base) in self._names:
            if _is_transpose(tensor, base):
                return base, True
            if id(base) in self._kinds and makes_values(tensor, base):
                return base, False
        return None, False


def _is_transpose(tensor: Tensor, base: torch.Tensor) -> bool:
    return tensor.shape == base.shape[::-1] and tensor.stride() == base.stride()[::-1]
