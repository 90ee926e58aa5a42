"""The compiled readings, each against the same in exact or 64-bit arithmetic."""

import math
import os
import sys

import numpy as np
import pytest
import torch

from torchnotes.diagnostics import _kernels

LARGE = 2 * (1 << 14)  # from here on a tensor is shared out among threads


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sums(x, team=0):
    return _kernels.sums(x.data_ptr(), x.numel(), team)


@pytest.mark.parametrize("count", [1, 7, 4096, 4097, 70_001])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30])
def test_sums(count, offset, scale):
    x = (torch.randn(count, generator=seeded()) + offset) * scale
    wide = x.double()
    square, total, spread, largest, zeros = sums(x)
    # A float32 sum of at most 4,096 / 8 values in each lane, in float64 from there on.
    assert square == pytest.approx(wide.square().sum().item(), rel=1e-5, abs=0)
    assert total == pytest.approx(wide.sum().item(), rel=1e-5, abs=1e-6 * wide.abs().sum().item())
    # The values, not the differences, are rounded to float32: the spread keeps its digits under an offset.
    assert spread == pytest.approx((wide - wide.mean()).square().sum().item(), rel=1e-4, abs=0)
    assert largest == x.abs().max().item()
    assert zeros == (x == 0).sum().item()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 4095, 33_000, 69_999])
@pytest.mark.parametrize("threads", [False, True])
def test_no_non_finite_value_is_lost(broken, place, threads):
    x = torch.randn(70_000, generator=seeded())
    x[place] = broken
    assert not math.isfinite(sums(x, _kernels.team() if threads else 0)[3])


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU runtime comes with torch's Linux builds")
class TestThreads:
    @pytest.mark.parametrize("count", [LARGE, LARGE + 1, 1_000_003])
    def test_the_sums_are_those_of_one(self, count):
        x = torch.randn(count, generator=seeded()) - 0.3
        x[::5] = 0.0
        alone, shared = sums(x), sums(x, _kernels.team())
        assert shared[:3] == pytest.approx(alone[:3], rel=1e-6)  # the pieces begin elsewhere
        assert shared[3:] == alone[3:]

    def test_every_value_is_read_once_by_any_number_of_threads(self):
        """Whole numbers, of which no sum is rounded: with one left out, or read twice, the sum is another."""
        x = torch.arange(1, LARGE + 38).remainder(7).float()
        before = torch.get_num_threads()
        try:
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                square, total, _, _, zeros = sums(x, _kernels.team())
                assert (square, total) == (x.double().square().sum().item(), x.double().sum().item())
                assert zeros == (x == 0).sum().item()
        finally:
            torch.set_num_threads(before)

    def test_the_threads_are_torchs(self):
        """A second runtime, such as another package brings along, would take turns with torch's threads."""
        home = os.path.realpath(torch.__path__[0])
        with open("/proc/self/maps") as lines:  # the path is the sixth field, and may hold spaces
            fields = [line.rstrip("\n").split(maxsplit=5) for line in lines]
        maps = [(part[0].split("-"), part[-1]) for part in fields]
        for address in _kernels._runtime()[:3].tolist():
            (path,) = [path for (start, end), path in maps if int(start, 16) <= address < int(end, 16)]
            assert path.startswith(home)

    def test_with_one_thread_it_does_without(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            assert _kernels.team() == 0
            torch.set_num_threads(2)
            assert _kernels.team() != 0
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(40, 6), (40, 6, 1), (5, 6, 9), (1, 6, 4), (33, 1)])
class TestUnits:
    def blocks(self, shape):
        outer, channels, *inner = shape
        return outer, channels, math.prod(inner)

    def idle(self, flags):
        return flags.transpose(0, 1).flatten(1).all(dim=1).int().tolist()

    def test_zero_everywhere(self, shape):
        x = torch.randn(shape, generator=seeded()).relu()
        x[:, 0] = 0.0
        x[-1].reshape(-1)[-1] = 1.0  # the last unit works in the very last place at least
        outer, channels, inner = self.blocks(shape)
        marks = np.full(channels, 7, dtype=np.int32)
        found = _kernels.sums_and_idle(x.data_ptr(), outer, channels, inner, marks, 0)
        assert found == sums(x)
        assert marks.tolist() == self.idle(x == 0)

    @pytest.mark.parametrize("ends", [(-0.5, 0.5), (-math.inf, 0.5), (0.0, 1.0)])
    def test_flat_everywhere(self, shape, ends):
        x = torch.randn(shape, generator=seeded())
        x[:, 0] = ends[1]  # an end is itself flat
        low, high = ends
        outer, channels, inner = self.blocks(shape)
        marks = np.full(channels, 7, dtype=np.int32)
        count = _kernels.flat_and_idle(x.data_ptr(), outer, channels, inner, low, high, marks)
        flat = (x <= low) | (x >= high)
        assert count == flat.sum().item()
        assert marks.tolist() == self.idle(flat)


def test_idle_counts_over_steps():
    """Two layers of 3 and 2 units; worked out by hand."""
    steps = [[1, 0, 1, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 0, 1]]
    length, total = np.zeros(5, np.int32), np.zeros(5, np.int32)
    sizes, shares = np.array([3, 2]), np.empty(2)
    for step in steps:
        _kernels.count_idle(np.array(step, np.int32), length, total, sizes, 2, shares)
    assert length.tolist() == [3, 2, 1, 0, 3]
    assert total.tolist() == [3, 2, 2, 0, 3]
    assert shares.tolist() == [2 / 3, 1 / 2]


def test_averages():
    """β = 1/2, twice: m = g₁/4 + g₂/2 and s = g₁²/4 + g₂²/2, summed over parts of 2 and 1 entries."""
    mean, square, out = np.zeros(3), np.zeros(3), np.empty((2, 2))
    for values in ([2.0, 4.0, 8.0], [6.0, 2.0, 0.0]):
        _kernels.average(np.array(values, np.float32), np.array([2, 1]), 0.5, 0.5, mean, square, out)
    assert mean.tolist() == [1.75, 1.0, 1.0]
    assert square.tolist() == [4.75, 1.5, 4.0]
    assert out.tolist() == [[1.75**2 + 1.0, 6.25], [1.0, 4.0]]
