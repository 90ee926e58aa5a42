"""Build the page of the docs that shows what every experiment found: ``python -m experiments.page``.

Runs every experiment in full (each leaves a ``reading.json``, see ``experiments.console.record``), then writes
``docs/experiments.md``, its pictures, and ``docs/experiments.json``, the readings it was made from. After running one
experiment again, ``python -m experiments.page --no-run`` builds the page from the logs that are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.__main__ import EXPERIMENTS, one_line
from experiments.console import Claim, markdown_reading

PICTURES = "images/experiments"
WIDEST = 1200  # pixels
LARGEST = 150_000  # bytes

Reading = dict[str, Any]  # what record wrote


@dataclass(frozen=True)
class Page:
    """Run every experiment, then build docs/experiments.md with their figures and readings."""

    run: bool = True
    """Run the experiments first (minutes each); --no-run takes the logs that are there."""
    log_dir: Path = Path("runs")
    """Where the experiments' logs are."""
    docs: Path = Path("docs")
    """Where the page and its pictures go."""


def read(log_dir: Path, names: Sequence[str] = EXPERIMENTS) -> list[Reading]:
    """The readings of full runs, one per experiment; a missing or a quick one ends the program with what to run."""
    readings, lacking = [], []
    for name in names:
        path = log_dir / name / "reading.json"
        reading = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if reading is None or reading["options"]["quick"]:
            lacking.append(name)
        else:
            readings.append(reading)
    if lacking:
        sys.exit(
            f"{log_dir} must hold a full run of every experiment, got none of {', '.join(lacking)}; run: "
            f"python -m experiments {' '.join(lacking)} --log-dir {log_dir}"
        )
    return readings


def render(readings: Sequence[Reading]) -> str:
    """The page in Markdown: a summary of all claims, then a section per experiment."""
    rows = []
    for reading in readings:
        held = [claim["held"] for claim in reading["claims"]]
        link = f"[{title(reading)}](#{title(reading).lower().replace(' ', '-')})"
        rows.append(f"| {link} | {held.count(True)} | {held.count(False) or '–'} | {held.count(None) or '–'} |")
    lines = [
        "# What the experiments found",
        "",
        "One experiment per section of the notes: each states what the notes claim, measures it, and says whether it",
        f"held. All ran with seed {_common(readings, 'seed')} on {_common(readings, 'device')}, with torch "
        f"{', '.join(sorted({reading['torch'] for reading in readings}))}. A claim that did not hold is shown like",
        "any other.",
        "",
        "Run one with `python -m experiments NAME`, all with `python -m experiments all`; each also writes TensorBoard",
        "logs. This page is built from what they print: `python -m experiments.page`.",
        "",
        "| experiment | claims held | did not hold | not judged |",
        "|---|---:|---:|---:|",
        *rows,
    ]
    for reading in readings:
        lines += ["", *_section(reading)]
    return "\n".join(lines) + "\n"


def title(reading: Reading) -> str:
    """Heading of an experiment's section."""
    return str(reading["experiment"]).replace("_", " ").capitalize()


def picture(reading: Reading, figure: dict[str, str]) -> str:
    """Path of a figure, from the docs folder."""
    return f"{PICTURES}/{reading['experiment']}_{figure['file']}"


def _section(reading: Reading) -> list[str]:
    claims = [Claim(**claim) for claim in reading["claims"]]
    lines = [f"## {title(reading)}", "", f"{reading['about']} (`python -m experiments {reading['experiment']}`)", ""]
    lines += markdown_reading(claims).splitlines()
    for figure in reading["figures"]:
        lines += ["", f"![{figure['title']}]({picture(reading, figure)})"]
        if figure["caption"]:
            lines += ["", figure["caption"]]
    for table in reading["tables"]:
        lines += ["", f"**{table['title']}**", "", *table["markdown"].splitlines()]
    return lines


def _common(readings: Sequence[Reading], option: str) -> str:
    return ", ".join(sorted({str(reading["options"][option]) for reading in readings}))


def copy_picture(source: Path, target: Path) -> None:
    """A figure in at most 256 colours and 1,200 pixels across, which halves its size and is not seen."""
    from PIL import Image

    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size
    if size > LARGEST:
        sys.exit(
            f"a picture must stay below {LARGEST:,} bytes, got {size:,} for {source}; draw fewer points or panels."
        )


def build(readings: Sequence[Reading], log_dir: Path, docs: Path) -> Path:
    """Write the page, the pictures and the readings; pictures that no section shows any more are removed."""
    shown = set()
    for reading in readings:
        for figure in reading["figures"]:
            target = docs / picture(reading, figure)
            copy_picture(log_dir / reading["experiment"] / figure["file"], target)
            shown.add(target)
    for old in (docs / PICTURES).glob("*.png"):
        if old not in shown:
            old.unlink()
    (docs / "experiments.json").write_text(json.dumps(readings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = docs / "experiments.md"
    page.write_text(render(readings), encoding="utf-8")
    return page


def main(config: Page) -> None:
    """Run what is asked for, and build."""
    if config.run:
        for name in EXPERIMENTS:
            print(f"\n=== {name}: {one_line(name)}", flush=True)
            command = [sys.executable, "-m", f"experiments.{name}", "--log-dir", str(config.log_dir)]
            code = subprocess.run(command, check=False).returncode
            if code:
                sys.exit(f"{name} ended with exit code {code}; the page was not built.")
    readings = [{**reading, "about": one_line(reading["experiment"])} for reading in read(config.log_dir)]
    for reading in readings:
        reading["options"] = {key: value for key, value in reading["options"].items() if key != "log_dir"}
    print(f"\nWritten: {build(readings, config.log_dir, config.docs)}")


if __name__ == "__main__":
    main(tyro.cli(Page, prog="python -m experiments.page"))
