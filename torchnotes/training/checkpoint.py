"""Checkpoints that are whole or not there: written beside, synced, then renamed."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; one that was there before is still there."""


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``state`` to ``path`` so that at every moment the path holds the old file or the new one, whole.

    The bytes go to a file beside it, are synced to the disk, and the file is renamed over the old one; the directory is
    synced too. A process killed in between, or a full disk, leaves the old file as it was.

    Memory: one serialised copy of the state.

    Raises:
        CheckpointError: the disk is full, the directory is missing or cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    beside: str | None = None
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    except OSError as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        kept = "the one from before is intact: " if path.exists() else ""
        raise CheckpointError(
            f"a checkpoint of {buffer.getbuffer().nbytes:,} bytes must fit into {path.parent}, got "
            f"{error.strerror or error}; {kept}make room or choose another path, and start again."
        ) from error


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


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, and the rename is durable with the file
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
