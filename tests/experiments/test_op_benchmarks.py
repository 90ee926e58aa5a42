from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import __main__ as command
from experiments.benchmarks.__main__ import Config, main
from experiments.benchmarks.breakdown import Breakdown, Call, breakdown
from experiments.benchmarks.breakdown import markdown as breakdown_markdown
from experiments.benchmarks.measure import Kept, bytes_kept, interleaved, quartiles_of_ratio, ratio_of_medians
from experiments.benchmarks.op_cases import all_cases
from experiments.benchmarks.table import Row, breakdowns, insert, markdown, marks


def config(tmp_path: Path, *only: str) -> Config:
    return Config(
        only=only,
        device="cpu",
        seconds=0.0,
        sample=0.0,
        compiled=False,
        quick=True,
        json=tmp_path / "b.json",
        markdown=tmp_path / "b.md",
    )


def test_a_run_writes_both_files_and_keeps_the_other_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(config(tmp_path, "relu, 1 element", "tanh, 1 element"))
    rows = main(config(tmp_path, "MLP(20"))
    works = [row.work for row in rows]
    assert {"relu, 1 element", "tanh, 1 element"} <= set(works)
    assert "MLP(20, 7, 5, 1), batch 209, BCE" in works
    stored = json.loads((tmp_path / "b.json").read_text())
    assert [row["work"] for row in stored["rows"]] == works
    assert stored["setting"]["torch"] == torch.__version__
    page = (tmp_path / "b.md").read_text()
    assert all(f"| {work} |" in page for work in works)
    assert "| MLP(20, 7, 5, 1), batch 209, BCE |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no row's name holds 'nothing'"):
        main(config(tmp_path, "nothing"))


def test_both_sides_of_every_row_do_the_same_work():
    for case in all_cases(quick=True):
        tensors = case.tensors("cpu")
        torch.manual_seed(0)
        ours, theirs = case.ours(*tensors), case.theirs(*tensors)
        assert ours.shape == theirs.shape
        if "keep" not in case.work:  # which draws its own mask
            torch.testing.assert_close(ours, theirs)


def test_bytes_count_each_storage_once_and_nothing_that_was_given():
    x = torch.randn(1000, requires_grad=True)

    def square_sum() -> torch.Tensor:
        return (x * x).sum()

    assert bytes_kept(x.exp, [x]) == Kept(4000, 4000)  # the output, which is what exp saves
    assert bytes_kept(x.sin, [x]) == Kept(0, 4000)  # only x is saved
    assert bytes_kept(lambda: x.exp().exp(), [x]) == Kept(8000, 8000)
    assert bytes_kept(square_sum, [x]) == Kept(0, 4)


def test_samples_are_taken_in_turn_and_compared_as_ratios():
    called: list[str] = []

    def work(name: str, seconds: float):
        def run() -> None:
            called.append(name)
            time.sleep(seconds)

        return run

    samples = interleaved(
        {"slow": work("slow", 0.004), "fast": work("fast", 0.001)}, seconds=0.0, sample=0.0, device="cpu"
    )
    assert len(samples["slow"]) == len(samples["fast"]) == 5
    assert called[-4:] == ["fast", "slow", "slow", "fast"]  # the last two rounds, each begun by another
    assert ratio_of_medians([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == 2.5
    low, high = quartiles_of_ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert low == high == 2.0


def row(**changed: object) -> Row:
    given: dict[str, object] = {
        "work": "work", "group": "group", "device": "cpu", "ours_us": 12.0, "eager_us": 10.0, "to_eager": 1.2,
        "to_eager_quartiles": (1.1, 1.3), "to_compiled": 0.5, "our_bytes": 100, "their_bytes": 400, "reach": 1.05,
        "reach_compiled": 0.6, "reach_bytes": 0.2, "our_saved": 30, "their_saved": 200,
    }  # fmt: skip
    return Row(**(given | changed))


SETTING = {"torch": "2", "threads": 2, "cuda": None}


def test_the_table_marks_what_loses_and_what_was_missed():
    text = markdown([row()], SETTING)
    assert "1.20 **loses** (≤ 1.05 **missed**) (1.10–1.30)" in text
    assert "0.50 (≤ 0.60 reached)" in text
    assert "| 0.15 (≤ 0.20 reached) | 0.25 (≤ 0.20 **missed**) |" in text
    assert "CUDA: not measured" in text


def test_a_sentence_counts_what_was_reached_and_names_what_was_not():
    reached, aimless = row(work="good", to_eager=1.05), row(work="other", reach=None)
    missed = row(work="slow"), row(work="slower", to_eager=1.0, to_compiled=0.7)
    text = markdown([reached, aimless, *missed], SETTING)
    assert "Of 3 rows with a time to be reached 1 reached it." in text
    assert "slow (1.20 against 1.05); slower (compiled 0.70 against 0.60)." in text
    assert "All 1 times that were to be reached were." in markdown([reached], SETTING)


def test_a_row_that_missed_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (case,) = (case for case in all_cases(quick=True) if case.work == "relu, 1 element")
    for reach in (0.0, 1e9):  # certain to be missed, certain to be reached
        monkeypatch.setattr(command, "all_cases", lambda reach=reach, **_: [replace(case, reach=reach)])
        (measured,) = main(config(tmp_path))
        page = (tmp_path / "b.md").read_text()
        assert measured.missed == (reach == 0.0) == ("**relu, 1 element**" in page)
        assert ("No row missed its aim." in page) == (reach > 0)
        (stored,) = json.loads((tmp_path / "b.json").read_text())["rows"]
        assert (stored["our_breakdown"] is None) == (reach > 0)
        if measured.our_breakdown:
            names = {call.name: call.count for call in measured.our_breakdown.calls}
            assert names["sign"] == names["mul"] == names["clamp_min"] == 1
            assert stored["our_breakdown"]["calls"][0]["us"] > 0
            assert [r.our_breakdown for r in command._before(tmp_path / "b.json")] == [measured.our_breakdown]


def test_a_missed_row_that_was_not_taken_apart_is_named():
    assert breakdowns([row(), row(to_eager=1.0)]) == "Not taken apart: work.\n"
    assert breakdowns([row(to_eager=1.0)]) == "No row missed its aim.\n"


def test_a_breakdown_counts_the_calls_of_one_pass():
    x = torch.randn(50, 50)

    def work() -> torch.Tensor:
        return (x @ x) * (x @ x)

    part = breakdown(work, seconds=0.0)
    assert {call.name: call.count for call in part.calls if call.name in ("mm", "mul")} == {"mm": 2, "mul": 1}
    assert [call.us for call in part.calls] == sorted((call.us for call in part.calls), reverse=True)
    assert part.number == 3
    assert part.wall_us > 0


def test_a_breakdown_says_what_is_left_outside_the_calls():
    ours = Breakdown(100.0, tuple(Call(f"op{i}", 1.0, 5.0) for i in range(10)))
    theirs = Breakdown(30.0, (Call("mm", 3.0, 20.25), Call("empty", 1.0, 1.0)))
    lines = breakdown_markdown("work", ours, theirs).splitlines()
    assert lines[0] == "**work**"
    assert "| 1 × `op0` | 5.0 | 3 × `mm` | 20.2 |" in lines
    assert "| 2 other kinds | 10.0 |  |  |" in lines
    assert "| *all 10 calls, and 3* | 50.0 | | 21.2 |" in lines
    assert "| *Python, autograd and dispatch* | 50.0 | | 8.8 |" in lines
    assert "| *one pass* | 100 | | 30.0 |" in lines


def test_only_what_is_between_the_marks_is_replaced():
    begin, end = marks("table")
    page = f"# Title\n\n{begin}\nold\n{end}\n\nafter\n"
    assert insert("new", page, "table") == f"# Title\n\n{begin}\nnew\n{end}\n\nafter\n"
    assert insert("new", "# Title\n", "table") == f"# Title\n\n{begin}\nnew\n{end}\n"
    assert insert("more", page, "rest").startswith(page)


def test_the_page_is_what_the_stored_rows_make_of_it():
    docs = Path(__file__).parents[2] / "docs"
    page, stored = (docs / "benchmarks.md").read_text(), json.loads((docs / "benchmarks.json").read_text())
    rows = command._before(docs / "benchmarks.json")
    written = insert(markdown(rows, stored["setting"]), page, "table")
    assert insert(breakdowns(rows), written, "breakdowns") == page
