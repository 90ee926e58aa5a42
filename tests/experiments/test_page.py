"""The page of the docs that shows what the experiments found: its builder, and the page itself."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import EXPERIMENTS, one_line
from experiments.config import CommonConfig
from experiments.console import Claim, Table, record
from experiments.figures import growth_heat_map
from experiments.logs import VariantLogs, save_figure
from experiments.page import Page, build, copy_picture, main, picture, read, render
from tests.experiments._runs import ROOT


def leave(log_dir: Path, name: str, *, quick: bool = False) -> None:
    """What a run of an experiment leaves behind."""
    with VariantLogs(log_dir / name) as logs:
        figure = growth_heat_map("Title", ["a", "b"], ["c"], {"forward": np.array([[0.5], [2.0]])})
        save_figure(logs["summary"], f"1 Group/Card of {name}", figure, log_dir / name / "map.png", "What to see.")
    table = Table("Its table", ("net", "growth"), "How to read it.", [("ReLU", "1.000")])
    claims = [Claim("It holds.", True, "Seen 1."), Claim("It fails.", False, "Seen 2."), Claim("Who knows.", None, "")]
    record(name, CommonConfig(seed=3, quick=quick, log_dir=log_dir), claims, [table])


def test_builds_a_section_with_claims_figures_and_tables(tmp_path: Path) -> None:
    leave(tmp_path / "runs", "batch_norm")
    readings = [{**reading, "about": "With and without."} for reading in read(tmp_path / "runs", ["batch_norm"])]
    stale = tmp_path / "docs" / "images" / "experiments" / "gone_map.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    page = build(readings, tmp_path / "runs", tmp_path / "docs")
    text = page.read_text(encoding="utf-8")
    assert text == render(json.loads((tmp_path / "docs" / "experiments.json").read_text(encoding="utf-8")))
    for line in (
        "| [Batch norm](#batch-norm) | 1 | 1 | 1 |",
        "## Batch norm",
        "With and without. (`python -m experiments batch_norm`)",
        "- **Held:** It holds. Seen 1.",
        "- **Did not hold:** It fails. Seen 2.",
        "![Card of batch_norm](images/experiments/batch_norm_map.png)",
        "What to see.",
        "**Its table**",
        "| ReLU | 1.000 |",
        "How to read it.",
    ):
        assert line in text.splitlines()
    assert "seed 3" in text
    assert [path.name for path in stale.parent.iterdir()] == ["batch_norm_map.png"]


def test_a_missing_or_quick_run_is_named(tmp_path: Path) -> None:
    leave(tmp_path, "batch_norm", quick=True)
    with pytest.raises(SystemExit, match=r"got none of batch_norm, decays; run: python -m experiments batch_norm dec"):
        read(tmp_path, ["batch_norm", "decays"])


def test_without_runs_it_says_which_to_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="must hold a full run of every experiment, got none of"):
        main(replace(Page(), run=False, log_dir=tmp_path, docs=tmp_path))
    assert not list(tmp_path.iterdir())


def test_pictures_are_made_small_and_too_large_ones_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 2400, 3), dtype=np.uint8)
    Image.fromarray(np.zeros_like(noise)).save(tmp_path / "wide.png")
    copy_picture(tmp_path / "wide.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as image:
        assert image.size == (1200, 250)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(SystemExit, match=r"a picture must stay below 150,000 bytes, got [\d,]+ for .*noise\.png"):
        copy_picture(tmp_path / "noise.png", tmp_path / "copy.png")


DOCS = ROOT / "docs"
READINGS = json.loads((DOCS / "experiments.json").read_text(encoding="utf-8"))


def test_the_page_is_what_its_readings_make() -> None:
    assert (DOCS / "experiments.md").read_text(encoding="utf-8") == render(READINGS)


def test_every_experiment_has_its_section() -> None:
    assert tuple(reading["experiment"] for reading in READINGS) == EXPERIMENTS
    assert [reading["about"] for reading in READINGS] == [one_line(name) for name in EXPERIMENTS]


def test_every_picture_is_there_shown_once_and_small() -> None:
    shown = [picture(reading, figure) for reading in READINGS for figure in reading["figures"]]
    there = [path.relative_to(DOCS).as_posix() for path in (DOCS / "images" / "experiments").iterdir()]
    assert sorted(shown) == sorted(there)
    assert max(path.stat().st_size for path in (DOCS / "images" / "experiments").iterdir()) < 150_000


def sentences(name: str) -> list[re.Pattern[str]]:
    """Every string in an experiment's source, as a pattern: what an f-string fills in may be anything."""
    folder = ROOT / "experiments" / name
    own = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    shared = [path for path in (ROOT / "experiments").glob("*.py") if path.stem not in EXPERIMENTS]
    files = [*own, *shared]
    found = []
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [re.escape(node.value)]
        else:
            continue
        words = re.sub(r"\.\*|\\.", " ", "".join(parts)).split()
        if len(words) >= 3:  # else ".*" would match anything
            found.append(re.compile("".join(parts)))
    return found


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading["experiment"])
def test_claims_and_captions_are_worded_as_in_the_script(reading: dict) -> None:
    patterns = sentences(reading["experiment"])
    texts = [claim["text"] for claim in reading["claims"]] + [figure["caption"] for figure in reading["figures"]]
    for text in texts:
        assert text
        assert any(pattern.fullmatch(text) for pattern in patterns), f"{text!r}: run python -m experiments.page"


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading["experiment"])
def test_no_sentence_gives_zero_or_infinity_as_a_figure(reading: dict) -> None:
    for claim in reading["claims"]:
        assert not re.search(r"\b0(\.0+)?e[+-]\d|\binf\b|\bnan\b", claim["evidence"]), claim["evidence"]
