"""What every experiment does around its measuring: judge, log, print, and leave its reading in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from experiments.config import CommonConfig
from experiments.console import Claim, ConfigT, Table, markdown_reading, print_reading, progress, record
from experiments.logs import VariantLogs, how_to_open
from experiments.threads import one_thread

if TYPE_CHECKING:
    from rich.console import Console


class Measured(Protocol):
    """The results of an experiment, whatever they are, with the claims judged by them."""

    reading: list[Claim]


ResultsT = TypeVar("ResultsT", bound=Measured)


def run_experiment(
    name: str,
    config: ConfigT,
    console: Console | None,
    pieces: int,
    measure: Callable[[ConfigT, Callable[[str], None]], ResultsT],
    claims: Callable[[ResultsT], list[Claim]],
    tables: Callable[[ResultsT], list[Table]],
    write_logs: Callable[[ResultsT, VariantLogs], None],
) -> ResultsT:
    """Measure, judge the claims, write the logs, print the tables and their reading.

    Args:
        name: of the experiment; its logs go to ``config.log_dir / name``.
        config: the options.
        console: where to print; None for the terminal.
        pieces: how often ``measure`` reports that a piece of its work is done.
        measure: from the options to the results.
        claims: the statements of the notes, judged by the results.
        tables: of the results.
        write_logs: curves and figures of the results.

    Returns:
        the results, with their reading filled in.
    """
    console = terminal(console)
    with one_thread(), VariantLogs(config.log_dir / name) as logs:
        with progress(console, pieces) as tick:
            results = measure(config, tick)
        results.reading = claims(results)
        write_logs(results, logs)
        write_summary(logs, results.reading, tables(results))
    finish(name, config, console, logs, results.reading, tables(results))
    return results


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
