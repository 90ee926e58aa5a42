"""The benchmark of a step runs small and writes its rows."""

import json
import re
from pathlib import Path

from experiments.benchmarks.optim_speed import MAKERS, Config, Row, main, markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_rows_are_written(tmp_path, capsys):
    config = Config(
        (400,), tensors=4, rules=("Adam",), seconds=0.01, json=tmp_path / "rows.json", markdown=tmp_path / "rows.md"
    )
    (row,) = main(config)
    assert row.ratio_to_foreach > 0
    assert row.ratio_to_fused > 0
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"][0]["ratio_to_foreach"] == row.ratio_to_foreach
    assert (tmp_path / "rows.md").read_text().splitlines()[-1] in capsys.readouterr().out


def test_page_in_the_docs_shows_the_measured_rows_and_marks_those_that_lose():
    written = json.loads((DOCS / "optim_speed.json").read_text())
    rows = [Row(**row) for row in written["rows"]]
    page = (DOCS / "optim.md").read_text()
    shown = re.search(r"<!-- table: begin -->\n(.*)<!-- table: end -->", page, re.DOTALL).group(1)
    assert shown.partition("\n\n")[2].strip() == markdown(rows)
    assert shown.startswith(f"torch {written['setting']['torch']}, {written['setting']['threads']} threads")
    sizes = (1_000_000, 100_000_000)
    assert {(row.rule, row.parameters, row.tensors) for row in rows} == {(r, n, 200) for r in MAKERS for n in sizes}
    losing = [row for row in rows if row.ratio_to_foreach > 1 or (row.ratio_to_fused or 0) > 1]
    assert shown.count("**loses**") == sum(
        (row.ratio_to_foreach > 1) + ((row.ratio_to_fused or 0) > 1) for row in losing
    )
    assert max(row.ratio_to_foreach for row in rows) <= 1.05  # what the page says was aimed at
