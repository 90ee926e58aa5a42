"""The page that lists every row of the notes: each name imports, each test and experiment is there and says so."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS

ROOT = Path(__file__).parents[1]
IDS = {"A": 14, "B": 7, "C": 6, "D": 10, "E": 6, "F": 13, "G": 17}


def rows():
    page = (ROOT / "docs" / "notes.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if re.match(r"\| [A-G]\d+ ", line):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


ROWS = list(rows())
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])


def quoted(cell):
    names = re.findall(r"`([^`]+)`", cell)
    assert names
    assert re.sub(r"`[^`]+`|,|\s", "", cell) == "", cell  # nothing beside the names
    return names


def test_every_row_of_the_notes_is_there_once_and_in_order():
    assert [row[0] for row in ROWS] == [f"{part}{n}" for part, count in IDS.items() for n in range(1, count + 1)]
    assert all(len(row) == 5 and all(row) for row in ROWS)


@each_row
def test_the_code_can_be_imported(row):
    for name in quoted(row[2]):
        module, _, attribute = f"torchnotes.{name}".rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


@each_row
def test_the_test_is_there(row):
    for name in quoted(row[3]):
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert function in functions, f"{name} is not there: {functions}"


@each_row
def test_the_experiment_is_there_and_names_the_row(row):
    for name in quoted(row[4]):
        assert name in EXPERIMENTS
        if row[0][0] in "EFG":
            assert row[0] in named_by(name), f"experiments.{name} names {sorted(named_by(name))}"


def named_by(experiment):
    """The ids that an experiment's source names after "SPEC", ranges such as B1-B7 or G2 to G5 written out."""
    folder = ROOT / "experiments" / experiment
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    found = set()
    for text in (file.read_text(encoding="utf-8") for file in files):
        for said in re.findall(r"SPEC ((?:[A-G]\d+(?:\s*(?:,|and|to|[-–…])\s*)?)+)", text):
            for first, last in re.findall(r"([A-G]\d+)(?:\s*(?:to|[-–…])\s*([A-G]\d+))?", said):
                numbers = range(int(first[1:]), int((last or first)[1:]) + 1)
                found.update(f"{first[0]}{number}" for number in numbers)
    return found


def test_ranges_of_ids_are_written_out(monkeypatch, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "x.py").write_text('"""A. SPEC E1, G2 to G4 and\n B1-B2."""\n# F9 (SPEC F3)', "utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert named_by("x") == {"E1", "G2", "G3", "G4", "B1", "B2", "F3"}
