"""Checkpoints that are whole or not there: written beside, synced, then renamed."""

from __future__ import annotations

import glob
import io
import os
import secrets
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchnotes._checks import describe

_SUFFIX = ".unfinished"
_SINGLE = (int, float, complex, bool, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.layout)
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; one that was there before is still there."""


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``state`` to ``path`` so that at every moment the path holds the old file or the new one, whole.

    The bytes go to a file beside it, are synced to the disk, and the file is renamed over the old one; the directory is
    synced too. A process killed in between, or a full disk, leaves the old file as it was.

    Memory: one serialised copy of the state.

    Raises:
        TypeError: something that :func:`load_checkpoint` would refuse to read back; nothing has been written then.
        CheckpointError: the disk is full, the directory is missing or cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(_plain(state, "state"), buffer)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666), "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kept = "the one from before is intact: " if path.exists() else ""
        raise CheckpointError(
            f"a checkpoint of {buffer.getbuffer().nbytes:,} bytes must fit into {path.parent}, got "
            f"{error.strerror or error}; {kept}make room or choose another path, and start again."
        ) from error


def check_place(path: Path) -> None:
    """Refuse a path at which no checkpoint could be written, before hours of training and not after.

    Raises:
        CheckpointError: its directory is missing or cannot be written, or the path is a directory itself.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"the directory of the checkpoint must exist, got {path.parent}; make it first.")
    if path.is_dir():
        raise CheckpointError(f"the checkpoint must be a file, got the directory {path}; name a file in it.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"the directory of the checkpoint must be writable, got {path.parent}; change its mode, or choose another."
        )


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove what processes killed while writing this checkpoint have left beside it, so that it does not pile up."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
        left.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; only tensors and plain values are unpickled.

    Raises:
        CheckpointError: the file is missing, or is no checkpoint.
    """
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"a checkpoint must exist to be read, got none at {path}; check the path.") from error
    except Exception as error:  # torch.load raises many kinds for a file that is none of its own
        raise CheckpointError(
            f"{path} must be a checkpoint, got a file that cannot be read ({type(error).__name__}); "
            "delete it to start anew."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must be a checkpoint, got {type(state).__name__}; delete it to start anew.")
    return state


def _plain(value: Any, where: str) -> Any:
    """``value`` in what ``torch.load(weights_only=True)`` trusts; what cannot be is found out on writing, not later.

    NumPy's numbers (a learning rate out of ``np.logspace``) become Python's, which are the same numbers. A container
    in which nothing changes is returned as it is.
    """
    if isinstance(value, Tensor) or type(value) in _SINGLE:
        return value
    if isinstance(value, np.generic) and type(value.item()) in _SINGLE:
        return value.item()
    if isinstance(value, dict):
        entries = {_plain(key, f"a key of {where}"): _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
        same = all(entry is value[key] for key, entry in entries.items())
        return value if same and type(value) in (dict, OrderedDict, Counter) else entries
    if type(value) in (list, tuple, set, torch.Size):
        parts = [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(parts)
    raise TypeError(
        f"a checkpoint takes tensors and plain values, got {describe(value)} at {where}; convert it in state_dict."
    )


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, and the rename is durable with the file
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
