"""What the two recorders of an evaluation have in common: the operations one by one, also inside `torch.cond`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import HigherOrderOperator


class Recorder:
    """The part of a dispatch mode that sees every operation; a subclass says in ``operation`` what it notes of one.

    The mode itself is made of this and `TorchDispatchMode`, and defines nothing: PyTorch wraps what a mode defines so
    that its first operation imports its compiler, which takes two seconds of every process; what it inherits from a
    class that is no mode is left as it is.
    """

    supports_higher_order_operators = True
    branched = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; of `torch.cond` the branch that is taken, operation by operation."""
        if not isinstance(func, HigherOrderOperator):
            return (self._in_parts if self.branched else self.operation)(func, args, kwargs or {})
        if func is torch.ops.higher_order.cond:
            condition, if_true, if_false, operands = args
            self.branched = True
            with self:  # type: ignore[attr-defined]
                return (if_true if condition else if_false)(*operands)
        return func(*args, **(kwargs or {}))

    def _in_parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The parts of a composite operation, which PyTorch hands over whole within `torch.cond`."""
        with self:  # type: ignore[attr-defined]
            parts = func.decompose(*args, **kwargs)
        return self.operation(func, args, kwargs) if parts is NotImplemented else parts

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation, and note what is to be noted."""
        raise NotImplementedError


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run in Python what `torch.compile` (and `torch.cond`, which calls it) would compile, for a recorder to see it.

    The compiler passes over what runs under a mode, and remembers to: `torch.cond` would fail from then on.
    """
    if "torch._dynamo" not in sys.modules:  # then nothing has been compiled, and it need not be imported
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
