"""The end of every experiment: summary into the log, tables and reading onto the terminal and into a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.config import CommonConfig
from experiments.console import Claim, Table, markdown_reading, print_reading, record
from experiments.logs import VariantLogs, how_to_open

if TYPE_CHECKING:
    from rich.console import Console


def write_summary(logs: VariantLogs, claims: Sequence[Claim], tables: Sequence[Table]) -> None:
    """The reading and the tables as text in TensorBoard; call it while the writers are open."""
    parts = [markdown_reading(claims), *(f"### {table.title}\n\n{table.markdown()}" for table in tables)]
    logs["overview"].add_text("0 What was found", "\n\n".join(parts))


def terminal(console: Console | None) -> Console:
    """The console given, or one for the terminal."""
    if console is None:
        from rich.console import Console

        console = Console()
    return console


def finish(
    name: str,
    config: CommonConfig,
    console: Console,
    logs: VariantLogs,
    claims: Sequence[Claim],
    tables: Sequence[Table],
) -> None:
    """Print tables, reading and how to see the curves, and leave ``reading.json``; call it after the writers closed."""
    for table in tables:
        table.print(console)
    print_reading(console, claims)
    record(name, config, claims, tables)
    console.print(f"\nCurves and pictures: {how_to_open(logs.folder)}", soft_wrap=True, highlight=False)
