"""Hand-derived PyTorch layers, a gradient checker, and a probe that says why a deep net will not train.

Sub-packages load when they are first used, so that a script pays only for what it calls.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchnotes import data as data
    from torchnotes import diagnostics as diagnostics
    from torchnotes import gradcheck as gradcheck
    from torchnotes import init as init
    from torchnotes import nn as nn
    from torchnotes import ops as ops
    from torchnotes import optim as optim
    from torchnotes import regularization as regularization
    from torchnotes import shapes as shapes
    from torchnotes import training as training
    from torchnotes.diagnostics import SignalMonitor as SignalMonitor
    from torchnotes.diagnostics import probe as probe
    from torchnotes.gradcheck import check_gradients as check_gradients

__version__ = "0.1.0"

_PACKAGES = frozenset(
    ("data", "diagnostics", "gradcheck", "init", "nn", "ops", "optim", "regularization", "shapes", "training")
)
_HOMES = {"SignalMonitor": "diagnostics", "probe": "diagnostics", "check_gradients": "gradcheck"}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"torchnotes.{name}")
    if name in _HOMES:
        return getattr(import_module(f"torchnotes.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'torchnotes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *_HOMES})
