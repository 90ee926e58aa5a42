"""What is compiled by numba needs: options, memory by address, and torch's own threads.

Memory is passed by address, as making a NumPy array of a tensor costs half as much as reading it: the caller answers
for it that so many values of the kind lie there side by side.

Only this file and the kernels import numba (``pip install 'torchnotes[fast]'``), and they are themselves imported where
they are used.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

from torchnotes.diagnostics.measuring import Array

carray: Any = numba.carray  # type: ignore[attr-defined]
intrinsic: Any = _intrinsic

MOST = 128  # threads of a team

# Sums may be taken in any order, so that they are vectorised; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "boundscheck": False}
part = numba.njit(**_OPTIONS)


def compiled(signature: str, kind: Callable[..., Any] = numba.njit) -> Callable[[Any], Any]:
    """Compile at once, and keep the code on disk where there is a place for it."""

    def compile_(function: Any) -> Any:
        try:
            return kind(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return kind(signature, **_OPTIONS)(function)

    return compile_


def directly(function: Any) -> Callable[..., Any]:
    """A compiled function of numbers, without the choice by the types of arguments, which costs as much as the call."""
    (found,) = function.overloads.values()
    return found.entry_point  # type: ignore[no-any-return]


team_body = compiled("void(intp)", numba.cfunc)  # called by C code with the address of its data


def _pointer_to(kind: Any) -> Any:
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return intrinsic(pointer)


floats, integers = _pointer_to(types.float32), _pointer_to(types.int32)
doubles, longs = _pointer_to(types.float64), _pointer_to(types.int64)


@intrinsic
def call(typing_context: Any, function: Any) -> Any:
    """Call the C function ``int f(void)`` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        found = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return builder.sext(found, ir.IntType(64))

    return types.int64(types.intp), generate


@intrinsic
def start_team(typing_context: Any, start: Any, body: Any, data: Any) -> Any:
    """Call ``GOMP_parallel(body, data, 0, 0)``: body(data) in every thread of a team of the usual size, to its end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, count = ir.IntType(64), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [word, word, count, count])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [*arguments[1:], count(0), count(0)])
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, types.intp), generate


@functools.cache
def _runtime() -> tuple[int, ...]:
    """Addresses of ``GOMP_parallel``, ``omp_get_thread_num`` and ``omp_get_num_threads``; none without GNU's runtime.

    Threads of another pool would take turns with those of the training step, which spin between its kernels.
    """
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        library = ctypes.CDLL(str(path))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        return tuple(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names)
    return ()


class Team:
    """What compiled code needs to use the threads of torch's own pool.

    Args:
        bodies: functions made by ``team_body`` that it starts, in an order that it knows.
    """

    def __init__(self, *bodies: Any) -> None:
        self._bodies = bodies

    @functools.cached_property
    def runtime(self) -> Array:
        """Addresses: those of ``_runtime``, then the bodies'; empty without a runtime."""
        found = _runtime()
        return np.array([*found, *(body.address for body in self._bodies)] if found else [], dtype=np.int64)

    def __call__(self) -> int:
        """Address of the runtime; 0 to do without."""
        return int(self.runtime.ctypes.data) if self.runtime.size and torch.get_num_threads() > 1 else 0
