"""Finding what a command line names as ``package.module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def load(path: str) -> Any:
    """The callable at ``package.module:name``, the current directory included in the search.

    >>> load("collections:OrderedDict.fromkeys").__name__
    'fromkeys'
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(
            f"factory must be written package.module:factory, got {path!r}; for example mynet.models:make."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(value, part):
            raise AttributeError(f"factory must exist in its module, got {path!r}; {module} has no {part!r}.")
        value = getattr(value, part)
    if not callable(value):
        raise TypeError(f"factory must be callable without arguments, got {type(value).__name__} at {path!r}.")
    return value
