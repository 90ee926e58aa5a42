"""Every random state a training loop may draw from: taken, set, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """The states of torch (CPU and every CUDA device), Python and NumPy, in types that ``torch.load`` trusts."""
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
    }


def restore(state: dict[str, Any]) -> None:
    """Set what :func:`capture` took."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw everything inside from ``seed``, and leave all states as they were found."""
    before = capture()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore(before)


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the samples in an epoch: a function of seed and epoch alone, so that it need not be stored."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1
    return torch.randperm(samples, generator=torch.Generator().manual_seed(mixed))
