"""What an experiment shows on the terminal: a progress bar, one table, and a reading of it in plain words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from experiments.config import CommonConfig

if TYPE_CHECKING:
    from rich.console import Console


ConfigT = TypeVar("ConfigT", bound=CommonConfig)


@dataclass(frozen=True)
class Claim:
    """One statement of the notes, and what the run found.

    Attributes:
        text: the statement, as a sentence.
        held: whether it was confirmed; None where this run cannot tell.
        evidence: the measured numbers.
    """

    text: str
    held: bool | None
    evidence: str

    @property
    def outcome(self) -> str:
        """In words."""
        return {True: "held", False: "did not hold", None: "not judged"}[self.held]


@dataclass
class Table:
    """A results table that prints on a terminal and in Markdown alike.

    Attributes:
        title: one line above it.
        columns: headings; all but the first two are set right.
        rows: cells as text; None is a rule between groups of rows.
        caption: what the reader must know to read it, below it.
    """

    title: str
    columns: Sequence[str]
    caption: str = ""
    rows: list[Sequence[str] | None] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """Draw it on the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.caption,
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < 2 else "right")
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """The same in Markdown."""
        lines = ["| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "|".join("---" if index < 2 else "---:" for index in range(len(self.columns))) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows if row is not None]
        return "\n".join([*lines, *(["", self.caption] if self.caption else [])])


def markdown_reading(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown list, each with its outcome and its evidence."""
    return "\n".join(f"- **{claim.outcome.capitalize()}:** {claim.text} {claim.evidence}" for claim in claims)


def print_reading(console: Console, claims: Sequence[Claim]) -> None:
    """The claims in plain words, each with its outcome and its evidence."""
    colors = {True: "green", False: "red", None: "yellow"}
    for claim in claims:
        console.print(f"[bold {colors[claim.held]}]{claim.outcome.capitalize()}:[/] {claim.text} {claim.evidence}")


def record(name: str, config: CommonConfig, claims: Sequence[Claim], tables: Sequence[Table] = ()) -> Path:
    """Leave ``<log_dir>/<name>/reading.json``: what the page of the docs shows of a run. Call it last in ``main``.

    It holds the claims, the tables, the options, and every figure that ``save_figure`` wrote into the folder, in the
    order of writing, with the figure's title and caption.

    Args:
        name: of the experiment; its folder is ``config.log_dir / name``.
        config: the options it ran with.
        claims: as printed by ``print_reading``.
        tables: as printed.

    Returns:
        the file.
    """
    import torch

    from experiments.logs import read_figures

    folder = config.log_dir / name
    reading = {
        "experiment": name,
        "torch": torch.__version__.partition("+")[0],
        "options": {key: value if isinstance(value, bool | int) else str(value) for key, value in vars(config).items()},
        "claims": [
            {"text": c.text, "held": None if c.held is None else bool(c.held), "evidence": c.evidence} for c in claims
        ],
        "tables": [{"title": table.title, "markdown": table.markdown()} for table in tables],
        "figures": read_figures(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reading.json"
    path.write_text(json.dumps(reading, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def amount(value: float, spec: str = ".0e", *, none: str = "exactly 0") -> str:
    """A difference as a sentence gives it: in the format given, and in words where there is none at all.

    >>> amount(3.2e-16), amount(0.0)
    ('3e-16', 'exactly 0')
    """
    return format(value, spec) if value else none


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over ``total`` pieces of work; call what it yields with what was just finished."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda description: bar.update(task, advance=1, description=description)


def command_line(config: type[ConfigT], main: Callable[[ConfigT, Console], object], name: str) -> None:
    """Read the command line into a config, run the experiment, and leave in order when interrupted.

    Args:
        config: a frozen dataclass that inherits ``CommonConfig``; its fields become ``--options``, and the strings
            below them the help.
        main: runs the experiment.
        name: as in ``python -m experiments.NAME``.
    """
    import tyro
    from rich.console import Console

    chosen = tyro.cli(config, prog=f"python -m experiments.{name}")  # a ValueError of the config's is shown by it
    console = Console()
    try:
        main(chosen, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was logged so far can be read in {chosen.log_dir / name}.", soft_wrap=True)
        sys.exit(130)
