"""Every op and layer against PyTorch's own, eager and compiled, in one process, sampled in turn.

    python -m experiments.benchmarks                 # all rows, some five minutes
    python -m experiments.benchmarks --only dropout "MLP(20"  # the rows with these words, the others as they were

A row that misses the time it was to reach is taken apart by PyTorch's profiler, ours beside PyTorch's. Writes
docs/benchmarks.json, and the table and the breakdowns in docs/benchmarks.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.breakdown import breakdown
from experiments.benchmarks.measure import Kept, Work, bytes_kept, interleaved, quartiles_of_ratio, ratio_of_medians
from experiments.benchmarks.op_cases import Case, Function, all_cases
from experiments.benchmarks.table import Row, breakdowns, from_json, insert, markdown

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Config:
    """What to time, and where the result goes."""

    only: tuple[str, ...] = ()  # rows whose name holds one of these; the others are kept as they are in the JSON file
    device: str = ""  # "cpu" or "cuda"; both, where there are both
    seconds: float = 3.0  # of measurement for each row
    sample: float = 0.005  # least seconds of one sample
    compiled: bool = True  # time torch.compile too, which takes some seconds a row to compile
    profile: bool = True  # take the rows apart that miss the time they were to reach
    quick: bool = False  # small sizes, to see that it runs
    json: Path = DOCS / "benchmarks.json"
    markdown: Path = DOCS / "benchmarks.md"


def _work(function: Function, tensors: list[Tensor], case: Case) -> Work:
    """One call: forward, and the gradient of every tensor and parameter that requires one."""
    if not case.backward:

        def forward() -> object:
            with torch.no_grad():
                return function(*tensors)

        return forward
    wanted = [*(t for t in tensors if t.requires_grad), *_parameters(function)]
    cotangent = torch.ones_like(function(*tensors))
    return lambda: torch.autograd.grad(function(*tensors), wanted, cotangent)


def _parameters(function: Function) -> list[Tensor]:
    return list(function.parameters()) if isinstance(function, torch.nn.Module) else []


def measure(case: Case, device: str, config: Config) -> Row:
    """Time one row on one device."""
    tensors = [t.detach().requires_grad_(t.requires_grad) for t in case.tensors(device)]
    ours, theirs = (f.to(device) if isinstance(f, torch.nn.Module) else f for f in (case.ours, case.theirs))
    contenders = {"ours": _work(ours, tensors, case), "eager": _work(theirs, tensors, case)}
    if config.compiled:
        torch._dynamo.reset()
        contenders["compiled"] = _work(torch.compile(theirs), tensors, case)
    samples = interleaved(contenders, seconds=config.seconds, sample=config.sample, device=device)
    kept: tuple[Kept | None, Kept | None] = None, None
    if case.backward:
        given = [[*tensors, *_parameters(f)] for f in (ours, theirs)]
        kept = bytes_kept(lambda: ours(*tensors), given[0]), bytes_kept(lambda: theirs(*tensors), given[1])
    compiled = ratio_of_medians(samples["ours"], samples["compiled"]) if config.compiled else None
    row = Row(
        work=case.work,
        group=case.group,
        device=device,
        ours_us=statistics.median(samples["ours"]) * 1e6,
        eager_us=statistics.median(samples["eager"]) * 1e6,
        to_eager=ratio_of_medians(samples["ours"], samples["eager"]),
        to_eager_quartiles=quartiles_of_ratio(samples["ours"], samples["eager"]),
        to_compiled=compiled,
        our_bytes=kept[0] and kept[0].with_output,
        their_bytes=kept[1] and kept[1].with_output,
        reach=case.reach,
        reach_compiled=case.reach_compiled,
        reach_bytes=case.reach_bytes,
        our_saved=kept[0] and kept[0].saved,
        their_saved=kept[1] and kept[1].saved,
    )
    if not (config.profile and row.missed and device == "cpu"):
        return row
    parts = (breakdown(contenders[name], seconds=config.seconds / 3) for name in ("ours", "eager"))
    return replace(row, our_breakdown=next(parts), eager_breakdown=next(parts))


def _setting() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _is_wanted(case: Case, only: Sequence[str]) -> bool:
    return not only or any(words in case.work for words in only)


def _before(path: Path) -> list[Row]:
    return [from_json(row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []


def main(config: Config) -> list[Row]:
    """Measure the rows asked for, print the table, write both files."""
    from rich.progress import track

    devices = [config.device] if config.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    cases = [case for case in all_cases(quick=config.quick) if _is_wanted(case, config.only)]
    if not cases:
        wanted = " or ".join(map(repr, config.only))
        raise SystemExit(f"no row's name holds {wanted}; see experiments/benchmarks/op_cases.py for their names.")
    todo = [(case, device) for device in devices for case in cases]
    order = {(device, case.work): None for device in ("cpu", "cuda") for case in all_cases(quick=config.quick)}
    rows = {(row.device, row.work): row for row in _before(config.json)}
    new = []
    for case, device in track(todo, description="benchmarks"):
        new.append(measure(case, device, config))
        rows[device, case.work] = new[-1]
        _write([rows[key] for key in order if key in rows], config)  # now, so that a run cut short keeps what it has
    print(markdown(new, _setting()))
    print(breakdowns(new))
    return [rows[key] for key in order if key in rows]


def _write(rows: Sequence[Row], config: Config) -> None:
    setting = _setting()
    config.json.write_text(json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    page = config.markdown.read_text() if config.markdown.exists() else ""
    page = insert(markdown(rows, setting), page, "table")
    config.markdown.write_text(insert(breakdowns(rows), page, "breakdowns"))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
