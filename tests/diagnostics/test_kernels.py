"""The compiled readings, each against the same in exact or 64-bit arithmetic."""

import math
import os
import sys

import numpy as np
import pytest
import torch

from torchnotes.diagnostics import _compiling, _kernels, _tracking_kernels

LARGE = 2 * (1 << 14)  # from here on a tensor is shared out among threads


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sums(x, team=0):
    """Σx², Σx, Σ(x − x̄)², max|x| and the zeros."""
    row = np.full(_kernels.WIDTH, math.pi)
    finite = _kernels.sums(x.data_ptr(), x.numel(), row.ctypes.data, team)
    assert finite == math.isfinite(row[4])
    assert (row[0], row[6]) == (x.numel(), -1)
    return tuple(row[1:6].tolist())


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
        for address in _compiling._runtime():
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
        marks, row = np.full(channels, 7, dtype=np.int32), np.empty(_kernels.WIDTH)
        places = row.ctypes.data, marks.ctypes.data
        assert _kernels.sums_and_idle(x.data_ptr(), outer, channels, inner, *places, 0)
        assert tuple(row[1:6].tolist()) == sums(x)
        assert marks.tolist() == self.idle(x == 0)

    @pytest.mark.parametrize("ends", [(-0.5, 0.5), (-math.inf, 0.5), (0.0, 1.0)])
    def test_flat_everywhere(self, shape, ends):
        x = torch.randn(shape, generator=seeded())
        x[:, 0] = ends[1]  # an end is itself flat
        low, high = ends
        outer, channels, inner = self.blocks(shape)
        marks, row = np.full(channels, 7, dtype=np.int32), np.empty(_kernels.WIDTH)
        places = row.ctypes.data, marks.ctypes.data
        _kernels.flat_and_idle(x.data_ptr(), outer, channels, inner, low, high, *places)
        flat = (x <= low) | (x >= high)
        assert row[6] == flat.sum().item()
        assert marks.tolist() == self.idle(flat)


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU runtime comes with torch's Linux builds")
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("shape", [(1000, 67), (7, 10_000), (130, 5, 101), (9, 4, 2048)])
def test_idle_units_by_any_number_of_threads(shape, threads):
    """Each thread marks by its own samples; a unit that works for one sample only, even the last, is not idle."""
    x = torch.randn(shape, generator=seeded()).relu()
    x[:, 0] = -0.0
    x[:, 1] = 0.0
    x[-1, 1].fill_(1.0)
    x[:, 2] = 0.0
    x[0, 2].fill_(1.0)
    outer, channels, inner = shape[0], shape[1], math.prod(shape[2:])
    marks, row = np.full(channels + 1, 7, dtype=np.int32), np.empty(_kernels.WIDTH)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        places = row.ctypes.data, marks.ctypes.data
        _kernels.sums_and_idle(x.data_ptr(), outer, channels, inner, *places, _kernels.team())
    finally:
        torch.set_num_threads(before)
    assert tuple(row[1:4].tolist()) == pytest.approx(sums(x)[:3], rel=1e-6)
    assert tuple(row[4:6].tolist()) == sums(x)[3:]
    assert marks.tolist() == [*(x == 0).transpose(0, 1).flatten(1).all(dim=1).int().tolist(), 7]


def read(vectors, plans, threads=1, wanted=None):
    """Sums and samples of vectors, of which those with a plan (stride, run, entries) are sampled."""
    team = _kernels.team() if threads > 1 else 0
    sampled = [(i, plan) for i, plan in enumerate(plans) if plan is not None]
    orders = np.zeros((4, len(vectors)), dtype=np.int64)
    samples = np.zeros((5, len(sampled)), dtype=np.int64)
    orders[0] = [x.data_ptr() for x in vectors]
    orders[1] = [x.numel() for x in vectors]
    orders[2] = 1 if wanted is None else wanted
    orders[3] = -1
    at = 0
    for number, (i, (stride, run, entries)) in enumerate(sampled):
        orders[3, i] = number
        samples[:, number] = vectors[i].data_ptr(), stride, run, entries, at
        at += entries
    rows, joined = np.full((len(vectors), _kernels.WIDTH), math.pi), np.full(at, math.pi, dtype=np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _kernels.sums_and_samples(orders, samples, rows, joined, threads, team)
    finally:
        torch.set_num_threads(before)
    return rows, joined, samples


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
class TestParameters:
    def vectors(self):
        sizes = (1, 300_000, 17, LARGE, LARGE + 3, 4096)
        return [torch.randn(size, generator=seeded(size)) + 0.1 for size in sizes]

    def test_every_sum(self, threads):
        vectors = self.vectors()
        rows, _, _ = read(vectors, [None] * 6, threads)
        for x, row in zip(vectors, rows, strict=True):
            assert (row[0], row[6]) == (x.numel(), -1)
            assert tuple(row[1:4].tolist()) == pytest.approx(sums(x)[:3], rel=1e-6)
            assert tuple(row[4:6].tolist()) == sums(x)[3:]

    def test_every_entry(self, threads):
        """By index, the last run among them, which ends with the vector or before it."""
        vectors = self.vectors()
        plans = [(1, 1, 1), (1171, 4, 4 * 256), None, (127, 1, 258), (4099, 4, 4 * 8), (1, 1, 4096)]
        _, joined, _ = read(vectors, plans, threads)
        expected = [
            x[j * stride + k].item()
            for x, plan in zip(vectors, plans, strict=True)
            if plan is not None
            for stride, run, entries in [plan]
            for j in range(entries // run)
            for k in range(run)
        ]
        assert joined.tolist() == expected

    def test_sums_that_are_not_wanted_are_not_taken(self, threads):
        rows, joined, _ = read(self.vectors(), [None, (1000, 1, 300), *[None] * 4], threads, wanted=[1, 0, 1, 1, 1, 1])
        assert rows[1].tolist() == [math.pi] * _kernels.WIDTH
        assert joined.tolist() == self.vectors()[1][:300_000:1000].tolist()

    def test_a_broken_value_shows_in_its_row_alone(self, threads):
        vectors = self.vectors()
        vectors[1][299_999], vectors[4][0] = math.nan, -math.inf
        rows, _, _ = read(vectors, [None] * 6, threads)
        assert [math.isfinite(row[4]) for row in rows] == [True, False, True, True, False, True]

    def test_relative_change(self, threads):
        """An entry changed by a tenth, a vector at rest, and one that was zero and is not any more."""
        vectors = [torch.full((40_000,), 2.0), torch.ones(500), torch.zeros(500), torch.zeros(500)]
        plans = [(100, 4, 1600), (1, 1, 500), (1, 1, 500), (1, 1, 500)]
        _, before, samples = read(vectors, plans, threads)
        vectors[0][100] += 0.2
        vectors[0][104] += 100.0  # between the entries of the sample
        vectors[2][7] = 1.0
        out = np.empty(4)
        _kernels.relative_change(samples, before, out, _kernels.team() if threads > 1 else 0)
        assert out[0] == pytest.approx(0.2 / math.sqrt(1600 * 4.0), rel=1e-6)
        assert out[1:3].tolist() == [0.0, math.inf]
        assert math.isnan(out[3])


def test_idle_counts_over_steps():
    """Two layers of 3 and 2 units; worked out by hand."""
    steps = [[1, 0, 1, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 0, 1]]
    length, total = np.zeros(5, np.int32), np.zeros(5, np.int32)
    sizes, shares = np.array([3, 2]), np.empty(2)
    for step in steps:
        _tracking_kernels.count_idle(np.array(step, np.int32), length, total, sizes, 2, shares)
    assert length.tolist() == [3, 2, 1, 0, 3]
    assert total.tolist() == [3, 2, 2, 0, 3]
    assert shares.tolist() == [2 / 3, 1 / 2]


def test_averages():
    """β = 1/2, twice: m = g₁/4 + g₂/2 and s = g₁²/4 + g₂²/2; the share of noise of parts of two entries and of one."""
    mean, square, shares = np.zeros(3), np.zeros(3), np.empty(2)
    counts = np.array([2, 1])
    for values in ([2.0, 4.0, 8.0], [6.0, 2.0, 0.0]):
        weight, left = 0.75, 5 / 9  # (1/4)² + (1/2)² over (3/4)²
        state = weight, left, mean, square, shares
        _tracking_kernels.average(np.array(values, np.float32), counts, 0.5, 0.5, *state)
    assert mean.tolist() == [1.75, 1.0, 1.0]
    assert square.tolist() == [4.75, 1.5, 4.0]
    expected = [(1 - (1.75**2 + 1.0) / (0.75 * 6.25)) / (4 / 9), (1 - 1.0 / (0.75 * 4.0)) / (4 / 9)]
    assert shares.tolist() == pytest.approx([expected[0], 1.0])  # the second is 1.5, and kept within bounds


def test_averages_of_zeros_and_of_infinity():
    mean, square, shares = np.zeros(2), np.zeros(2), np.empty(2)
    values = np.array([0.0, math.inf], np.float32)
    _tracking_kernels.average(values, np.array([1, 1]), 1.0, 0.9, 0.1, 0.5, mean, square, shares)
    assert all(map(math.isnan, shares))
