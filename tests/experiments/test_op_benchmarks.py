from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.__main__ import Config, main
from experiments.benchmarks.measure import bytes_kept, interleaved, quartiles_of_ratio, ratio_of_medians
from experiments.benchmarks.op_cases import all_cases
from experiments.benchmarks.table import BEGIN, END, Row, insert, markdown


def config(tmp_path: Path, only: str) -> Config:
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
    main(config(tmp_path, "1 element"))
    rows = main(config(tmp_path, "MLP(20"))
    works = [row.work for row in rows]
    assert "relu, 1 element" in works
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

    assert bytes_kept(x.exp, [x]) == 4000  # the output, which is what exp saves
    assert bytes_kept(lambda: x.exp().exp(), [x]) == 8000
    assert bytes_kept(square_sum, [x]) == 4  # only x is saved


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


def test_the_table_marks_what_loses_and_what_was_missed():
    row = Row("work", "group", "cpu", 12.0, 10.0, 1.2, (1.1, 1.3), 0.5, 100, 400, 1.05, 0.6, 0.2)
    text = markdown([row], {"torch": "2", "threads": 2, "cuda": None})
    assert "1.20 **loses** (≤ 1.05 **missed**) (1.10–1.30)" in text
    assert "0.50 (≤ 0.60 reached)" in text
    assert "0.25 (≤ 0.20 **missed**)" in text
    assert "CUDA: not measured" in text


def test_only_what_is_between_the_marks_is_replaced():
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    assert insert("new", page) == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nafter\n"
    assert insert("new", "# Title\n") == f"# Title\n\n{BEGIN}\nnew\n{END}\n"
