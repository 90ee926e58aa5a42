"""False alarms and misses of the verdict, over architectures, widths, depths and seeds.

    python -m experiments.benchmarks.verdict_grid --json verdict_grid.json --markdown verdict_grid.md

The truth of a case is what theory says of it at infinite width, before it is run: growth^(depth − 1) is the change of
scale over the net. Up to half a decade it is sound, from two decades on it is broken; between the two either verdict
can be defended and neither counts. A "false alarm" is a sound direction not called healthy, a "miss" a broken one
called anything but its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.benchmarks.grid_nets import FAMILIES, Family
from experiments.console import Table, progress
from experiments.threads import one_thread
from torchnotes.diagnostics import probe

SOUND, BROKEN = 0.5, 2.0


@dataclass(frozen=True)
class Config:
    """What to run."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (5, 20, 50, 100)
    seeds: int = 20
    known_seeds: int = 100
    """Seeds of the two nets whose verdict is certain: ReLU at 2/n and at 1/n, 64 wide and 50 deep."""
    batch: int = 32
    conv_width: int = 64
    """The widest convolution: its 64 positions make it as dear as a layer eight times as wide."""
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Case:
    """One direction of one net."""

    family: str
    width: int
    depth: int
    seed: int
    direction: str
    truth: str
    verdict: str


def truth(growth: float, depth: int) -> str:
    """Sound, broken one way or the other, or neither clearly."""
    change = math.log10(growth) * (depth - 1)
    if abs(change) <= SOUND:
        return "healthy"
    if abs(change) < BROKEN:
        return "either"
    return "exploding" if change > 0 else "vanishing"


def run(config: Config, family: Family, width: int, depth: int, seeds: int | None = None) -> Iterator[Case]:
    """All seeds of one cell."""
    for seed in range(config.seeds if seeds is None else seeds):
        net = family.build(width, depth, seed)
        x = torch.randn(config.batch, width, generator=torch.Generator().manual_seed(10_000 + seed))
        torch.manual_seed(seed)  # dropout masks
        verdict = probe(net, x, theory=False).verdict
        for direction, growth, found in (
            ("forward", family.forward, verdict.forward),
            ("backward", family.backward, verdict.backward),
        ):
            yield Case(family.name, width, depth, seed, direction, truth(growth, depth), str(found))


def cells(config: Config) -> list[tuple[Family, int, int]]:
    """Every architecture at every size."""
    return [
        (family, width, depth)
        for family in FAMILIES
        for width in config.widths
        for depth in config.depths
        if family.kind != "conv" or (width <= config.conv_width and depth <= 50)
    ]


def by_family(cases: list[Case]) -> Table:
    """The table by architecture."""
    table = Table(
        "Verdicts against theory, by architecture",
        ("net", "expected growth, forward / backward", "sound", "false alarms", "broken", "misses"),
    )
    for family in FAMILIES:
        own = [case for case in cases if case.family == family.name]
        if own:
            growth = f"×{family.forward:.3g} / ×{family.backward:.3g}"
            table.rows.append((family.name, growth, *_counts(own)))
    table.rows.append(("all", "", *_counts(cases)))
    return table


def by_size(config: Config, cases: list[Case]) -> Table:
    """False alarms by width and depth: the finite width is what causes them."""
    table = Table(
        "False alarms among sound directions, by width and depth",
        ("width", "", *(f"depth {depth}" for depth in config.depths)),
    )
    for width in config.widths:
        row = [str(width), ""]
        for depth in config.depths:
            sound = [c for c in cases if c.width == width and c.depth == depth and c.truth == "healthy"]
            alarms = sum(c.verdict != "healthy" for c in sound)
            row.append(f"{alarms} of {len(sound)}")
        table.rows.append(row)
    return table


def of_known_nets(config: Config) -> Table:
    """He initialisation, which must be called healthy, and 1/n with ReLU, which must be called vanishing."""
    table = Table(
        f"ReLU, 64 wide and 50 deep, {config.known_seeds} seeds",
        ("variance", "activations", "gradients", "both"),
    )
    for family, word in ((FAMILIES[0], "healthy"), (FAMILIES[1], "vanishing")):
        cases = list(run(config, family, 64, 50, config.known_seeds))
        right = [case.verdict == word for case in cases]
        counts = (sum(right[::2]), sum(right[1::2]), sum(a and b for a, b in zip(right[::2], right[1::2], strict=True)))
        words = (f"{word} on {count} of {config.known_seeds}" for count in counts)
        table.rows.append((family.name, *words))
    return table


def _counts(cases: list[Case]) -> tuple[str, str, str, str]:
    sound = [case for case in cases if case.truth == "healthy"]
    broken = [case for case in cases if case.truth in ("vanishing", "exploding")]
    alarms = sum(case.verdict != "healthy" for case in sound)
    misses = sum(case.verdict != case.truth for case in broken)
    return str(len(sound)), _share(alarms, sound), str(len(broken)), _share(misses, broken)


def _share(count: int, among: list[Case]) -> str:
    return f"{count} ({count / len(among):.1%})" if among else "–"


def main(config: Config) -> list[Case]:
    """Run the grid, print both tables, write what was asked for."""
    from rich.console import Console

    console = Console()
    cases: list[Case] = []
    grid = cells(config)
    with one_thread(), progress(console, len(grid)) as advance:
        for family, width, depth in grid:
            cases += run(config, family, width, depth)
            advance(f"{family.name}, {width} wide, {depth} deep")
        known = [of_known_nets(config)] if config.known_seeds else []
    tables = [by_family(cases), by_size(config, cases), *known]
    for table in tables:
        table.print(console)
    if config.json is not None:
        config.json.write_text(json.dumps([asdict(case) for case in cases]))
    if config.markdown is not None:
        config.markdown.write_text("\n\n".join(f"{table.title}:\n\n{table.markdown()}" for table in tables) + "\n")
    return cases


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, prog="python -m experiments.benchmarks.verdict_grid"))
