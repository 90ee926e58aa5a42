"""Timing several ways to do the same work side by side, and counting what each keeps alive for its backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Work = Callable[[], object]


def interleaved(contenders: dict[str, Work], *, seconds: float, sample: float, device: str) -> dict[str, list[float]]:
    """Seconds per call of each contender, sampled in turn so that what else the machine does falls on all of them.

    Args:
        contenders: name to one call's work.
        seconds: how long to measure in all.
        sample: the least duration of one sample; short work is repeated to fill it.
        device: the device's work is waited for where this is not the CPU.

    Returns:
        One list of samples for each, all of the same length, at least five.
    """

    def timed(work: Work, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    repeats: dict[str, int] = {}
    for name, work in contenders.items():
        timed(work, 1)  # compiles, fills caches
        timed(work, 2)
        once = min(timed(work, 1) for _ in range(3))
        repeats[name] = max(1, round(sample / once))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:  # no one is always first
            samples[name].append(timed(contenders[name], repeats[name]))
        rounds += 1
    return samples


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median time of ours over the median time of theirs: below 1, ours is faster."""
    return statistics.median(ours) / statistics.median(theirs)


def quartiles_of_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """First and third quartile of the ratio over pairs of neighbouring samples."""
    first, _, third = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return first, third


class Kept(NamedTuple):
    """Bytes alive from forward to backward beyond what was given.

    Attributes:
        saved: of the tensors saved for backward.
        with_output: of those and the output, which whoever takes the gradient holds.
    """

    saved: int
    with_output: int


def bytes_kept(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> Kept:
    """What one forward pass keeps: each storage counts once and whole, inputs and parameters do not count."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()  # bound until the count is done: a storage freed before could be counted twice
    for tensor in given:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    saved = sum(storages.values())
    keep(output)
    return Kept(saved, sum(storages.values()))
