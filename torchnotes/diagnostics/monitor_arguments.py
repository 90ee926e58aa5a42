"""What a monitor is asked for: is it right, and can it be done?"""

from __future__ import annotations

import importlib.util
import warnings

from torch import nn

from torchnotes._checks import describe


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def can_compile(wanted: bool | None) -> bool:
    """Whether compiled code measures: as wanted, or where numba is installed."""
    if wanted is not None and not isinstance(wanted, bool):
        raise TypeError(f"compiled must be True, False or None, got {describe(wanted)}.")
    if wanted and not _has_numba():
        raise ModuleNotFoundError(
            "compiled=True needs numba, which is not installed: pip install 'torchnotes[fast]', or leave it at None."
        )
    if wanted or (wanted is None and _has_numba()):
        try:
            import torchnotes.diagnostics._kernels  # noqa: F401
        except Exception as error:
            if wanted:
                raise
            warnings.warn(
                f"numba is installed but does not work here, so SignalMonitor measures without it, which takes longer: "
                f"{type(error).__name__}: {error}. compiled=False says so beforehand.",
                RuntimeWarning,
                stacklevel=3,
            )
            return False
        return True
    return False


def check_arguments(model: object, **counts: object) -> None:
    """Refuse what is no model to train, and counts of steps that are none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; wrap a function in a module.")
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"model must have parameters, got {type(model).__name__} with none; there is nothing to train in it."
        )
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of steps from 1 on, got {value!r}; try {name}=10.")
