"""Where a float64 evaluation drops to a coarser precision on its way, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchnotes.gradcheck._recorder import Recorder, uncompiled
from torchnotes.gradcheck.report import Finding

FINE = torch.finfo(torch.float64).eps
NAME = "float64 throughout"


class _Casts(Recorder):
    """Records the coarsest dtype to which float64 values were rounded, below autograd and inside custom Functions.

    Conversions that lose nothing (a mask, labels, whole numbers) do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarsest: torch.dtype | None = None
        self.eps = 0.0

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation, and note a conversion that rounds."""
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_", "convert_element_type"):
            source = args[1] if name == "copy_" else args[0]
            if isinstance(source, Tensor) and isinstance(out, Tensor):
                self._note(source, out)
        return out

    def _note(self, source: Tensor, out: Tensor) -> None:
        fractional = out.is_floating_point() or out.is_complex()
        if not fractional or source.dtype not in (torch.float64, torch.complex128):
            return
        eps = torch.finfo(out.dtype).eps
        if eps <= max(FINE, self.eps) or bool(torch.isclose(out.to(source.dtype), source, rtol=0, atol=0).all()):
            return
        self.eps, self.coarsest = eps, out.dtype


class CastRecorder(_Casts, TorchDispatchMode):
    """The recorder as a mode, made of two classes for the reason given at `Recorder`."""


def rounding(evaluate: Callable[[], object]) -> tuple[float, str]:
    """The relative spacing of the coarsest numbers that float64 values are rounded to on the way, and their dtype.

    Returns:
        (0.0, "") where everything stays in float64.
    """
    with CastRecorder() as recorder, torch.no_grad(), uncompiled():
        evaluate()
    return recorder.eps, str(recorder.coarsest).removeprefix("torch.") if recorder.coarsest else ""


def precision_finding(eps: float, dtype: str, *, returned: bool) -> Finding | None:
    """What is to be said of a forward that rounds: nothing finer than that can be checked.

    Args:
        eps: the spacing.
        dtype: its name.
        returned: whether the outputs themselves are of that dtype, as of a cast, and not only something in between.
    """
    if not eps:
        return None
    what = f"fn returns {dtype}" if returned else f"the forward computes in {dtype} on the way"
    detail = f"{what}, rounded to {eps:.0e}: no error finer than that shows, in value or gradient"
    return Finding(NAME, "inconclusive" if returned else "suspect", detail)
