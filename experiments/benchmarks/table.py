"""The measured rows, and what was measured of those that missed their aim, as Markdown between marks of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks import breakdown
from experiments.benchmarks.breakdown import Breakdown, Call


def marks(part: str) -> tuple[str, str]:
    """What stands before and after a part of the page that a run writes."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


@dataclass(frozen=True)
class Row:
    """One measured row. Times in microseconds; ratios are ours over theirs, so below 1 ours is faster or smaller."""

    work: str
    group: str
    device: str
    ours_us: float
    eager_us: float
    to_eager: float
    to_eager_quartiles: tuple[float, float]
    to_compiled: float | None
    our_bytes: int | None
    their_bytes: int | None
    reach: float | None
    reach_compiled: float | None
    reach_bytes: float | None
    our_saved: int | None = None
    their_saved: int | None = None
    our_breakdown: Breakdown | None = None
    eager_breakdown: Breakdown | None = None

    @property
    def bytes_ratio(self) -> float | None:
        """Bytes of saved tensors and output, ours over theirs; None where neither keeps any."""
        return _over(self.our_bytes, self.their_bytes)

    @property
    def saved_ratio(self) -> float | None:
        """Bytes of saved tensors alone; None where theirs are none."""
        return _over(self.our_saved, self.their_saved)

    @property
    def missed(self) -> bool:
        """Whether a time that was to be reached was not."""
        return _misses(self.to_eager, self.reach) or _misses(self.to_compiled, self.reach_compiled)


def from_json(row: dict[str, Any]) -> Row:
    """The row that `dataclasses.asdict` took apart."""
    parts = {}
    for name in ("our_breakdown", "eager_breakdown"):
        part = row.get(name)
        if part is not None:
            parts[name] = Breakdown(part["wall_us"], tuple(Call(**call) for call in part["calls"]))
    low, high = row["to_eager_quartiles"]
    return Row(**{**row, **parts, "to_eager_quartiles": (low, high)})


def _over(ours: int | None, theirs: int | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _misses(value: float | None, reach: float | None) -> bool:
    return value is not None and reach is not None and round(value, 2) > round(reach, 2)


def _ratio(value: float | None, reach: float | None) -> str:
    """The ratio, marked where it loses to the peer and where it misses what was to be reached."""
    if value is None:
        return "–"
    text = f"{value:.2f}"
    if value > 1.005:
        text += " **loses**"
    if reach is not None:
        text += f" (≤ {reach:.2f} {'**missed**' if _misses(value, reach) else 'reached'})"
    return text


def _time(microseconds: float) -> str:
    return f"{microseconds:,.1f} µs" if microseconds < 1000 else f"{microseconds / 1000:,.1f} ms"


def markdown(rows: Sequence[Row], setting: dict[str, Any]) -> str:
    """The table, one part for each device."""
    lines = [
        f"torch {setting['torch']}, {setting['threads']} CPU threads; CUDA: {setting['cuda'] or 'not measured'}.",
        "",
    ]
    heading = (
        "| work | ours | PyTorch | ours / PyTorch (quartiles) | ours / torch.compile "
        "| bytes saved | bytes saved, and the output |"
    )
    for device in ("cpu", "cuda"):
        of_device = [row for row in rows if row.device == device]
        if not of_device:
            continue
        lines += [f"### {device.upper()}", "", heading, "|---|---:|---:|---|---|---|---|"]
        for row in of_device:
            low, high = row.to_eager_quartiles
            lines.append(
                f"| {row.work} | {_time(row.ours_us)} | {_time(row.eager_us)} "
                f"| {_ratio(row.to_eager, row.reach)} ({low:.2f}–{high:.2f}) "
                f"| {_ratio(row.to_compiled, row.reach_compiled)} "
                f"| {_ratio(row.saved_ratio, row.reach_bytes)} | {_ratio(row.bytes_ratio, row.reach_bytes)} |"
            )
        lines += ["", _summary(of_device), ""]
    return "\n".join(lines)


def _summary(rows: Sequence[Row]) -> str:
    """One sentence on the times that were to be reached."""
    aimed = [row for row in rows if row.reach is not None]
    missed = [f"{row.work} ({_nearest(row)})" for row in aimed if row.missed]
    if not missed:
        return f"All {len(aimed)} times that were to be reached were."
    return (
        f"Of {len(aimed)} rows with a time to be reached {len(aimed) - len(missed)} reached it. "
        f"Missed, with the figure of this run against the one to be reached: {'; '.join(missed)}."
    )


def _nearest(row: Row) -> str:
    against = (("", row.to_eager, row.reach), ("compiled ", row.to_compiled, row.reach_compiled))
    return ", ".join(
        f"{name}{value:.2f} against {reach:.2f}"
        for name, value, reach in against
        if value is not None and reach is not None and _misses(value, reach)
    )


def breakdowns(rows: Sequence[Row]) -> str:
    """The rows that missed their aim, taken apart."""
    parts = [
        breakdown.markdown(
            f"{row.work}{'' if row.device == 'cpu' else ', CUDA'}", row.our_breakdown, row.eager_breakdown
        )
        for row in rows
        if row.our_breakdown is not None and row.eager_breakdown is not None
    ]
    parts += [f"Not taken apart: {row.work}.\n" for row in rows if row.missed and row.our_breakdown is None]
    return "\n".join(parts) or "No row missed its aim.\n"


def insert(text: str, page: str, part: str) -> str:
    """The page with the text between the marks of a part, which are added at the end where it has none."""
    begin, end = marks(part)
    if begin not in page or end not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    return f"{before}{begin}\n{text}\n{end}{after}"
