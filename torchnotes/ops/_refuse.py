"""Options of PyTorch's functions that a hand-derived op does not have, and the errors that say so."""

from __future__ import annotations

from typing import NoReturn


def refuse_inplace(op: str) -> NoReturn:
    """Say why there is no in-place form."""
    raise ValueError(
        f"{op} must be called with inplace=False, got inplace=True; an op here leaves its input unmodified: "
        "drop the argument."
    )
