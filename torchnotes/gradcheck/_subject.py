"""A function or module as the checks see it: a list of tensors in, a list of real float64 tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from torchnotes._checks import describe
from torchnotes.gradcheck._state import RandomStates, evaluated

NestLeaf = Any


def slots_of(module: nn.Module) -> dict[str, list[str]]:
    """Every place at which a parameter or buffer is kept, by the name that ``named_parameters`` has for it.

    Weights that are tied have several. A module that is used twice has one, whatever its names: `functional_call`, left
    to find the ties itself, replaces its weight once for each name and afterwards leaves a replacement behind.
    """
    places: dict[int, list[str]] = {}
    for prefix, m in module.named_modules():
        for leaf, tensor in [*m._parameters.items(), *m._buffers.items()]:
            if tensor is not None:
                places.setdefault(id(tensor), []).append(f"{prefix}.{leaf}" if prefix else leaf)
    return {name: places[id(t)] for name, t in [*module.named_parameters(), *module.named_buffers()]}


class Subject:
    """y = f(θ): θ the differentiated inputs and, for a module, its parameters.

    Attributes:
        names: the name of every tensor of θ.
        random: the random states every evaluation starts from.
        places: where the differentiated inputs stand among all leaves of the arguments.
        values: their float64 values, leaves that require grad.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        random: RandomStates,
        *,
        convert: bool = True,
    ) -> None:
        self._fn, self.random = fn, random
        leaves, self._spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self._leaves: list[NestLeaf] = [_double(leaf) if convert else leaf for leaf in leaves]
        self.places = _differentiable(leaves)
        self.names = [_place_name(k, leaves, args, kwargs) for k in self.places]
        self.kept: list[int] | None = None
        self._parameters: list[str] = []
        self._buffers: dict[str, Tensor] = {}
        self._slots = slots_of(fn) if isinstance(fn, nn.Module) else {}
        if isinstance(fn, nn.Module):
            self._parameters = [n for n, p in fn.named_parameters() if p.requires_grad]
            self._buffers = {n: b.detach().clone() for n, b in fn.named_buffers()}
            own = dict(fn.named_parameters())
        values = [self._leaves[k].detach().clone(memory_format=torch.contiguous_format) for k in self.places]
        values += [own[n].detach().clone(memory_format=torch.contiguous_format) for n in self._parameters]
        self.values = [v.requires_grad_() for v in values]
        self.names += self._parameters

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The outputs that carry a gradient, as real float64 tensors, under the frozen random states."""
        outputs: list[Tensor] = evaluated(lambda: self._evaluate(values))
        return outputs

    def _evaluate(self, values: Sequence[Tensor]) -> list[Tensor]:
        self.random.replay()
        leaves = list(self._leaves)
        for k, value in zip(self.places, values, strict=False):
            leaves[k] = value
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        if self._parameters or self._buffers:
            own = dict(zip(self._parameters, values[len(self.places) :], strict=True))
            own.update({name: kept.clone() for name, kept in self._buffers.items()})
            everywhere = {slot: value for name, value in own.items() for slot in self._slots[name]}
            out = functional_call(self._fn, everywhere, args, kwargs, tie_weights=False)  # type: ignore[arg-type]
        else:
            out = self._fn(*args, **kwargs)
        outputs = [_real(o) for o in pytree.tree_leaves(out) if isinstance(o, Tensor) and _continuous(o)]
        return outputs if self.kept is None else [outputs[k] for k in self.kept]

    def tensors(self) -> list[Tensor]:
        """Every tensor among the inputs, differentiated or not."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def leave_out_constants(self) -> int:
        """Leave out outputs that carry no gradient where others do (mean and variance beside a norm), from now on.

        Returns:
            How many were left out.
        """
        outputs = self(self.values)
        live = [k for k, o in enumerate(outputs) if o.requires_grad]
        if live and len(live) < len(outputs):
            self.kept = live
            return len(outputs) - len(live)
        return 0

    def flat(self, values: Sequence[Tensor]) -> Tensor:
        """All outputs joined into one vector."""
        outputs = self(values)
        if not outputs:
            raise ValueError(
                "fn must return at least one floating-point tensor, got none; "
                "a function of integers or of nothing has no gradient."
            )
        return torch.cat([o.reshape(-1).double() for o in outputs])


def _continuous(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _real(value: Tensor) -> Tensor:
    return torch.stack((value.real, value.imag), -1) if value.is_complex() else value


def _double(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
        raise TypeError(
            f"inputs must be dense, got a tensor of layout {leaf.layout}; pass tensor.to_dense() to a function "
            "that makes it sparse again."
        )
    if isinstance(leaf, Tensor) and leaf.is_complex():
        raise TypeError(
            f"inputs must be real, got {describe(leaf)}; pass torch.view_as_real(input) "
            "to a function that starts with torch.view_as_complex."
        )
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _differentiable(leaves: Sequence[Any]) -> list[int]:
    """Which leaves are differentiated: those that require grad, or every floating-point one if none does."""
    real = [k for k, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()]
    asked = [k for k in real if leaves[k].requires_grad]
    return asked or real


def _place_name(k: int, leaves: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """``input[1]``, or the keyword; a nested one by its position within."""
    seen = 0
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for n, value in named:
        count = len(pytree.tree_leaves(value))
        if k < seen + count:
            name = f"input[{n}]" if isinstance(n, int) else n
            return name if count == 1 else f"{name}[{k - seen}]"
        seen += count
    raise AssertionError("a leaf belongs to an argument")
