"""Where the time of a row goes: which calls of ATen, how long each takes, and what is left outside them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.measure import Work

SHOWN = 8  # calls of a breakdown that the page lists; the JSON file has all


@dataclass(frozen=True)
class Call:
    """One kind of ATen call in one pass of the work.

    Attributes:
        name: as ATen calls it.
        count: how many of it in one pass.
        us: microseconds of one pass spent in them, those that they call left out.
    """

    name: str
    count: float
    us: float


@dataclass(frozen=True)
class Breakdown:
    """One pass of one contender's work.

    Attributes:
        wall_us: microseconds of one pass, measured without the profiler.
        calls: the calls of ATen, the longest first, measured with it.
    """

    wall_us: float
    calls: tuple[Call, ...]

    @property
    def inside_us(self) -> float:
        """Microseconds inside ATen."""
        return sum(call.us for call in self.calls)

    @property
    def number(self) -> float:
        """Calls of ATen that do something to elements: no allocation, no view."""
        return sum(call.count for call in self.calls if call.name not in _NO_WORK)


_NO_WORK = {
    "empty", "empty_like", "empty_strided", "as_strided", "view", "reshape", "t", "transpose", "expand", "unsqueeze",
    "squeeze", "slice", "narrow", "split", "select", "detach", "alias", "to", "_to_copy", "linear", "resize_", "set_",
    "matmul", "resolve_conj", "resolve_neg", "expand_as", "view_as", "contiguous", "new_empty", "lift_fresh",
}  # fmt: skip


def breakdown(work: Work, *, seconds: float) -> Breakdown:
    """Time the work as it is for half of the seconds, and under PyTorch's profiler for the other half.

    A figure is the median over passes. The profiler adds about a microsecond to each call, which shows where a call
    takes few.
    """
    for _ in range(3):
        work()
    walls: list[float] = []
    end = time.perf_counter() + seconds / 2
    while len(walls) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    wall = statistics.median(walls)
    passes = max(3, min(200, round(seconds / 2 / wall)))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(passes):
            work()
    times: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        if event.name.startswith("aten::"):
            times[event.name.removeprefix("aten::")].append(event.self_cpu_time_total)
    calls = [Call(name, len(us) / passes, _per_pass(us, passes)) for name, us in times.items()]
    return Breakdown(wall * 1e6, tuple(sorted(calls, key=lambda call: -call.us)))


def _per_pass(us: Sequence[float], passes: int) -> float:
    """Median over the passes of the sum over the calls of a pass; events come in the order they began."""
    each = len(us) // passes
    if each * passes != len(us):  # not the same number in every pass
        return statistics.median(us) * len(us) / passes
    return statistics.median(sum(us[i * each : (i + 1) * each]) for i in range(passes))


def markdown(work: str, ours: Breakdown, theirs: Breakdown) -> str:
    """Two lists of calls side by side, the longest first, and what is left."""
    lines = [f"**{work}**", "", "| ours: ATen call | µs | PyTorch: ATen call | µs |", "|---|---:|---|---:|"]
    columns = [_cells(ours), _cells(theirs)]
    longest = max(map(len, columns))
    for left, right in zip(*(column + [("", "")] * (longest - len(column)) for column in columns), strict=True):
        lines.append(f"| {left[0]} | {left[1]} | {right[0]} | {right[1]} |")
    for name, both in (
        (f"all {ours.number:.0f} calls, and {theirs.number:.0f}", (ours.inside_us, theirs.inside_us)),
        ("Python, autograd and dispatch", (ours.wall_us - ours.inside_us, theirs.wall_us - theirs.inside_us)),
        ("one pass", (ours.wall_us, theirs.wall_us)),
    ):
        lines.append(f"| *{name}* | {_us(both[0])} | | {_us(both[1])} |")
    return "\n".join([*lines, ""])


def _cells(part: Breakdown) -> list[tuple[str, str]]:
    shown, rest = part.calls[:SHOWN], part.calls[SHOWN:]
    cells = [(f"{call.count:.0f} × `{call.name}`", _us(call.us)) for call in shown]
    return cells + ([(f"{len(rest)} other kinds", _us(sum(call.us for call in rest)))] if rest else [])


def _us(us: float) -> str:
    return f"{us:,.0f}" if abs(us) >= 100 else f"{us:.1f}"
