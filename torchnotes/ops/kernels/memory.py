"""Memory for large results on a CPU, where being given it costs more than filling it.

The allocator returns a block of 32 MiB or more to the system when it is freed, so the next one of that size comes anew
and is handed out, and zeroed, in pages of 4 KiB as each is first touched: for a ReLU of 10 million elements that
takes four times as long as the ReLU. Asked beforehand, Linux hands it out in pages of 2 MiB.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchnotes.ops._function import may_overwrite

LARGE = 32 << 20  # bytes; from here on glibc's allocator always asks the system
_WIDEST = 8  # bytes of an element
_PAGE = 4096
_MADV_HUGEPAGE = 14


def large_like(like: Tensor) -> Tensor | None:
    """An empty tensor like this one for ``out=``, if it is large, on a CPU, and nobody differentiates; else None.

    ``torch.tanh(x, out=large_like(x))`` is then ``torch.tanh(x)`` in either case.
    """
    if is_compiling() or like.numel() * _WIDEST < LARGE or like.numel() * like.element_size() < LARGE:
        return None
    if like.device.type != "cpu" or type(like) is not Tensor or not may_overwrite(like):
        return None
    result = torch.empty_like(like)
    _ask_for_large_pages(result)
    return result


def _ask_for_large_pages(tensor: Tensor) -> None:
    """Say that a block is to come in pages of 2 MiB; whether it does is up to the system, and nothing else changes."""
    advise = _madvise()
    if advise is not None:
        start = -(-tensor.data_ptr() // _PAGE) * _PAGE  # the first whole page
        advise(start, tensor.data_ptr() + tensor.untyped_storage().nbytes() - start, _MADV_HUGEPAGE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
