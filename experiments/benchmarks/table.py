"""The measured rows as a Markdown table between two marks of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


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

    @property
    def bytes_ratio(self) -> float | None:
        """Bytes kept for backward, ours over theirs; None where neither keeps any."""
        return self.our_bytes / self.their_bytes if self.our_bytes is not None and self.their_bytes else None


def _ratio(value: float | None, reach: float | None) -> str:
    """The ratio, marked where it loses to the peer and where it misses what was to be reached."""
    if value is None:
        return "–"
    text = f"{value:.2f}"
    if value > 1.005:
        text += " **loses**"
    if reach is not None:
        text += f" (≤ {reach:.2f} {'reached' if round(value, 2) <= round(reach, 2) else '**missed**'})"
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
        "| work | ours | PyTorch | ours / PyTorch (quartiles) | ours / torch.compile | bytes kept, ours / PyTorch |"
    )
    for device in ("cpu", "cuda"):
        of_device = [row for row in rows if row.device == device]
        if not of_device:
            continue
        lines += [f"### {device.upper()}", "", heading, "|---|---:|---:|---|---|---|"]
        for row in of_device:
            low, high = row.to_eager_quartiles
            lines.append(
                f"| {row.work} | {_time(row.ours_us)} | {_time(row.eager_us)} "
                f"| {_ratio(row.to_eager, row.reach)} ({low:.2f}–{high:.2f}) "
                f"| {_ratio(row.to_compiled, row.reach_compiled)} | {_ratio(row.bytes_ratio, row.reach_bytes)} |"
            )
        lines.append("")
    return "\n".join(lines)


def insert(table: str, page: str) -> str:
    """The page with the table between its marks, which are added at the end where it has none."""
    if BEGIN not in page or END not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
