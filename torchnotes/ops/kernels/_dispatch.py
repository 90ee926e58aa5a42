"""When an op runs its Triton kernel: only where it has been measured to win, or where the caller asks for it.

The rule
--------
A kernel is used for a CUDA tensor when `MEASURED` holds a row for this kernel, this GPU's compute capability, this
dtype and at most this many elements. A row is a measured win over the same op without the kernel: it is entered by hand
from what ``python -m experiments.benchmarks.cuda_kernels`` prints on that GPU. **No GPU was at hand so far: the table
is empty, and no kernel is used unless asked for.**

To ask for them (or to forbid them), for the ops called inside::

    with torchnotes.ops.kernels.mode("always"):  # "auto" is the rule above, "never" the ops' plain arithmetic
        loss = model(x)

or for a whole process ``TORCHNOTES_KERNELS=always`` in the environment before torchnotes is imported. The choice is
made in the forward pass; the backward belongs to it, wherever and in whatever mode it runs.

What a kernel computes is what the op computes without it, to round-off; dropout draws its mask from the same generator
but by another formula, so that the masks of the two differ (each is the same whenever the generator's state is).
A kernel is opaque to everything that looks into an op: under `torch.compile`, a `torch.func` transform or forward mode
the plain arithmetic runs, whatever the mode, and a backward that is to be differentiated again is plain arithmetic too.

Triton's interpreter runs the kernels on CPU tensors, slowly, for tests: ``TRITON_INTERPRET=1`` and mode "always".
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from torchnotes.ops._function import _is_legacy_batched, plain_eager

Kernel = Literal["dropout", "dense", "cross_entropy"]
Mode = Literal["auto", "always", "never"]
_PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may mean something else by its elements
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Win(NamedTuple):
    """One measured win of a kernel over the op's plain arithmetic, forward and backward together.

    Attributes:
        kernel: which one.
        capability: compute capability of the GPU it was measured on; (9, 0) is an H100 or H200.
        dtype: name of the dtype, such as ``"bfloat16"``.
        from_elements: the fewest elements at which it won, and from where on it is used.
        ratio: the least time of the plain op over the time of the kernel, at that size and above.
    """

    kernel: Kernel
    capability: tuple[int, int]
    dtype: str
    from_elements: int
    ratio: float


MEASURED: tuple[Win, ...] = ()


def _check_mode(value: str, name: str) -> None:
    if value not in get_args(Mode):
        raise ValueError(
            f"{name} must be 'auto', 'always' or 'never', got {value!r}; "
            "'auto' uses a kernel where it was measured to win."
        )


_DEFAULT = os.environ.get("TORCHNOTES_KERNELS", "auto")
_check_mode(_DEFAULT, "TORCHNOTES_KERNELS")
_mode: ContextVar[str] = ContextVar("torchnotes_kernels", default=_DEFAULT)
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def mode(value: Mode) -> Iterator[None]:
    """Choose when the ops called inside run their Triton kernels.

    Args:
        value: ``"auto"``, where a kernel was measured to win; ``"always"``, wherever it can run; ``"never"``.

    Raises:
        ValueError: ``value`` is none of these.

    >>> with mode("never"):
    ...     y = torch.ones(3)
    """
    _check_mode(value, "mode")
    token = _mode.set(value)
    try:
        yield
    finally:
        _mode.reset(token)


def chosen(kernel: Kernel, x: Tensor, elements: int | None = None) -> bool:
    """Whether an op is to run its kernel.

    Args:
        kernel: the kernel.
        x: the op's input.
        elements: the size that counts, that of ``x`` if None.

    Raises:
        ImportError: the mode is ``"always"`` and Triton is not installed.
    """
    if not (x.is_cuda or _INTERPRETED) or not plain_eager() or _is_legacy_batched(x):
        return False
    wanted = _mode.get()
    if wanted == "never" or x.dtype not in DTYPES or type(x) not in _PLAIN:
        return False
    if wanted == "always":
        _require_triton()
        return True
    return any(_applies(win, kernel, x, elements or x.numel()) for win in MEASURED)


def dense_chosen(x: Tensor, outputs: int) -> bool:
    """Whether `dense` is to run its kernel: never below 8 rows, where a lane of random numbers is no whole row."""
    if not (x.is_cuda or _INTERPRETED):
        return False
    rows = x.numel() // max(x.shape[-1], 1)
    return rows >= 8 and outputs > 0 and chosen("dense", x, rows * outputs)


def _applies(win: Win, kernel: Kernel, x: Tensor, elements: int) -> bool:
    return (
        win.kernel == kernel
        and elements >= win.from_elements
        and str(_computed_in(kernel, x)) == f"torch.{win.dtype}"
        and x.is_cuda
        and torch.cuda.get_device_capability(x.device) == win.capability
        and _triton_found()
    )


def _computed_in(kernel: Kernel, x: Tensor) -> torch.dtype:
    """The dtype of a matrix product under autocast is not that of its input."""
    if kernel == "dense" and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


@functools.cache
def _triton_found() -> bool:
    return importlib.util.find_spec("triton") is not None


def _require_triton() -> None:
    if not _triton_found():
        raise ImportError(
            "mode 'always' needs Triton, which is not installed; pip install triton (Linux), or use mode 'auto'."
        )
