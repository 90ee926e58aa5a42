import pytest
import torch

from experiments.benchmarks.cuda_kernels import Comparison, Config, as_table, main, wins


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there: it would be measured")
def test_without_a_gpu_it_says_so_and_measures_nothing(capsys):
    main(Config())
    assert capsys.readouterr().out == "not measured: no CUDA device\n"


def row(elements, plain, surely):
    return Comparison("dropout", "float32", elements, {"kernel": 1.0, "plain": plain, "eager": 0.5}, surely)


def test_a_kernel_enters_from_where_it_wins_at_every_larger_size():
    rows = [row(1 << 10, 3.0, True), row(1 << 12, 0.8, False), row(1 << 14, 1.3, True), row(1 << 16, 2.0, True)]
    (win,) = wins(rows, (9, 0))
    assert win == ("dropout", (9, 0), "float32", 1 << 14, 1.3)
    assert wins([*rows, row(1 << 18, 1.01, False)], (9, 0)) == []


def test_losing_rows_are_marked():
    assert as_table([row(1024, 2.0, True)]).rows == [
        ["dropout", "float32", "1,024", "1,000,000", "2.00", "0.50 (loses)"]
    ]
