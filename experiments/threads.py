"""How many cores an experiment of small matrices should use: one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and numpy to one CPU thread inside the block.

    Splitting a product of 128 × 128 matrices over two cores took 1.6 times as long as doing it on one, and 60 times
    when another program had one of the cores; with one thread the order of every sum is also the same on any machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
