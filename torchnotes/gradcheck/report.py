"""What a check found: verdict, ratios, culprits; as objects, as a table, as Markdown and as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torchnotes.gradcheck.compare import Verdict

WIDTH = 100
NOTHING = "-"  # in place of a verdict on a tensor without entries


@dataclass(frozen=True)
class Entry:
    """One entry of one parameter's gradient: by autograd (exact) and by differences (approx)."""

    parameter: str
    index: tuple[int, ...]
    exact: float
    approx: float
    error: float

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        return f"{self.parameter}[{where}]: gradient {self.exact:.6g}, difference quotient {self.approx:.6g}"


@dataclass(frozen=True)
class ParameterReport:
    """One parameter (or input): how its gradient compares with its differences.

    Attributes:
        name: its name in the model, or the argument's name.
        shape: its shape.
        verdict: on this tensor alone.
        ratio: the notes' ratio at the ε asked for.
        refined_ratio: the ratio the verdict rests on: better step where one was needed, entries at kinks left out.
        noise_floor: the ratio that round-off alone would give at the ε asked for.
        truncation: the ratio that the difference formula's own error would give.
        eps, scheme: the step and stencil the verdict rests on.
        smallest_visible: the smallest error in one entry that would have been seen, in the gradient's units.
        rms: root mean square of the gradient's entries.
        wrong, kinks: how many entries are wrong; how many lie at a kink and were held only to the one-sided slopes.
        pattern: how the wrong gradient relates to the right one, in words; empty if nothing fits or nothing is wrong.
        reason: why this verdict.
        worst: the entries that differ most.
    """

    name: str
    shape: tuple[int, ...]
    verdict: Verdict
    ratio: float
    refined_ratio: float
    noise_floor: float
    truncation: float
    eps: float
    scheme: str
    smallest_visible: float
    rms: float
    wrong: int
    kinks: int
    pattern: str
    reason: str
    worst: tuple[Entry, ...]


@dataclass(frozen=True)
class Finding:
    """One property checked without any ε: a contract every backward must keep, or one module's own backward."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class CostReport:
    """The whole gradient of one cost: J, or its data part or penalty alone."""

    name: str
    value: float
    verdict: Verdict
    ratio: float
    noise_floor: float


@dataclass(frozen=True)
class GradientReport:
    """The outcome of a gradient check.

    Attributes:
        verdict: ``"correct"``, ``"suspect"``, ``"wrong"`` or ``"inconclusive"``; a whole is as bad as its worst part.
        ratio: the notes' ratio ‖dθ_approx − dθ‖ / (‖dθ_approx‖ + ‖dθ‖) over all of θ at ``eps`` (SPEC D4).
        refined_ratio: the ratio the verdict rests on, from the steps named per parameter.
        noise_floor: the ratio that a correct gradient would have at ``eps``, by the measured round-off of J alone.
        truncation: the ratio the difference formula's own error would give at ``eps``.
        eps: the ε asked for.
        method: how the differences were taken.
        by_parameter: one report a parameter, by name.
        costs: the whole, the data cost and the penalty, where there is one.
        findings: contracts of the backward, checked without ε.
        modules: each module's own backward, checked at the input it saw.
        culprits: the innermost modules whose own backward is wrong.
        notes: what the reader should know, in sentences.
        reason: why this verdict, in a sentence.
        smallest_visible: the smallest error of a single entry that would have been seen.
        interval: for a projected check, the confidence interval of the ratio.
        evaluations: how many times J (or its equivalent in work) was evaluated.
        seconds: how long it took.
    """

    verdict: Verdict
    ratio: float
    refined_ratio: float
    noise_floor: float
    truncation: float
    eps: float
    method: str
    by_parameter: dict[str, ParameterReport]
    reason: str
    smallest_visible: float
    costs: tuple[CostReport, ...] = ()
    findings: tuple[Finding, ...] = ()
    modules: tuple[Finding, ...] = ()
    culprits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None
    evaluations: float = 0.0
    seconds: float = 0.0
    title: str = field(default="gradient check", repr=False)

    @property
    def ok(self) -> bool:
        """Whether the gradient was found correct."""
        return self.verdict == "correct"

    def worst(self, k: int = 5) -> list[Entry]:
        """The k entries that differ most, over all parameters; entries of parameters judged wrong come first."""
        entries = [
            (p.verdict != "wrong", -e.error if math.isfinite(e.error) else -math.inf, e)
            for p in self.by_parameter.values()
            for e in p.worst
        ]
        return [e for *_, e in sorted(entries, key=lambda item: item[:2])[:k]]

    def headline(self) -> str:
        """The verdict in one line.

        The ratio printed is the notes', at the ε that was asked for, and beside it the floor that round-off sets.
        """
        return (
            f"{self.verdict.upper()}: ratio {_number(self.ratio)} at ε = {self.eps:.0e} "
            f"(round-off alone: {_number(self.noise_floor)}; truncation: {_number(self.truncation)})"
        )

    def sentences(self) -> Iterator[str]:
        """Everything that is not in the table, a sentence each."""
        yield self.reason
        for p in self.by_parameter.values():
            if p.pattern:
                yield f"{p.name}: {p.pattern}"
        for name in self.culprits:
            detail = next(f.detail for f in self.modules if f.name == name)
            yield f"the fault is inside {name or 'the model itself'}: {detail}"
        for f in self.findings:
            if f.verdict != "correct" and f.detail not in self.reason:
                yield f"{f.name}: {f.detail}"
        if self.interval is not None:
            yield f"estimated ratio, 95 % interval: {_number(self.interval[0])} to {_number(self.interval[1])}"
        yield from self.notes
        yield f"smallest error of one entry that would have been seen: {_number(self.smallest_visible)}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The table: one row a parameter."""
        for p in self.by_parameter.values():
            count = math.prod(p.shape)
            wrong = f"{p.wrong}/{count}" if p.wrong else "-"
            step = f"{p.eps:.0e} {p.scheme}"
            yield (
                p.name, "×".join(map(str, p.shape)) or "scalar", _number(p.ratio), _number(p.noise_floor),
                _number(p.refined_ratio), step, wrong, str(p.kinks or "-"), p.verdict if count else NOTHING,
            )  # fmt: skip

    def to_table(self, width: int = WIDTH, *, color: bool = False) -> str:
        """The report as text, no line longer than ``width`` columns."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(
            width=width, file=io.StringIO(), force_terminal=color, color_system="standard" if color else None,
            legacy_windows=False,
        )  # fmt: skip
        console.print(Text(self.headline(), style=_STYLE[self.verdict]))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for name, justify in zip(
            COLUMNS, ("left", "left", *["right"] * 2, "right", "left", "right", "right", "left"), strict=True
        ):
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows():
            table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=_STYLE.get(row[-1], "")))
        console.print(table)
        for sentence in self.sentences():
            console.print(Text(f"• {sentence}"), soft_wrap=False)
        if self.verdict in ("wrong", "suspect"):
            for entry in self.worst(5):
                console.print(Text(f"    {entry}"))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in str(text).splitlines())

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"**{self.headline()}**", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        lines += ["| " + " | ".join(f"`{c}`" if k == 0 else c for k, c in enumerate(row)) + " |" for row in self.rows()]
        lines += ["", *(f"- {sentence}" for sentence in self.sentences())]
        if self.verdict in ("wrong", "suspect"):
            lines += [f"- `{entry}`" for entry in self.worst(5)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; numbers that are not finite become None, as JSON has no word for them."""
        return {str(k): v for k, v in _plain(asdict(self)).items()}

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_table()


COLUMNS = ("parameter", "shape", "ratio", "floor", "judged", "by", "wrong", "kinks", "verdict")
_STYLE = {"correct": "green", "suspect": "yellow", "inconclusive": "yellow", "wrong": "bold red"}


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class GradientMismatch(AssertionError):
    """A gradient check that did not come out correct; its text is the report, and ``.report`` the report itself."""

    def __init__(self, report: GradientReport) -> None:
        super().__init__("\n" + str(report))
        self.report = report
