"""Two processes share the coordinates and report what one process reports."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torchnotes.gradcheck import check_gradients

rank, world, store, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
torch.manual_seed(rank if mode == "unlike" else 0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
torch.manual_seed(1)
x, y = torch.randn(10, 6).double(), torch.randint(3, (10,))



class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.view_as(w)

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[5, 2] += 0.1
        return g


if mode == "projected":
    whole = model
    whole.forward = lambda x: whole[2](torch.tanh(F.linear(x, Wrong.apply(whole[0].weight), whole[0].bias)))
try:
    options = {"method": "projected"} if mode == "projected" else {}
    report = check_gradients(model, x, y, loss=F.cross_entropy, **options)
    named = " ".join(map(str, report.worst(1)))
    print(report.verdict, f"{report.ratio:.12e}", report.method, "|", named, "|", int(report.evaluations))
except ValueError as error:
    print("refused", error)
if world > 1:
    dist.destroy_process_group()
"""


def launch(tmp_path, world, mode="exact"):
    script = tmp_path / "shared.py"
    script.write_text(SCRIPT)
    store = tmp_path / f"store_{world}_{mode}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(store), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    outputs = [p.communicate(timeout=200) for p in processes]
    assert all(p.returncode == 0 for p in processes), outputs
    return [out.strip().splitlines()[-1] for out, _ in outputs]


def test_two_processes_give_the_result_of_one_and_share_the_work(tmp_path):
    (alone,) = launch(tmp_path, 1)
    first, second = launch(tmp_path, 2)
    verdict, ratio, *_, work = alone.split()
    for line in (first, second):
        got = line.split()
        assert got[0] == verdict == "correct"
        assert float(got[1]) == pytest.approx(float(ratio), rel=1e-6)  # the batches differ, so round-off may
        assert "2 processes" in line
        assert int(got[-1]) < 0.75 * int(work)
    assert first.split()[1] == second.split()[1]


def test_processes_with_different_parameters_are_refused(tmp_path):
    lines = launch(tmp_path, 2, "unlike")
    assert all("every process must hold the same parameters" in line for line in lines)


def test_a_projected_check_is_shared_too_and_says_what_one_process_says(tmp_path):
    """Every evaluation is the same arithmetic wherever it is made: the same ratio to the last digit, the same entry."""
    (alone,) = launch(tmp_path, 1, "projected")
    lines = launch(tmp_path, 2, "projected")
    verdict, ratio, *_ = alone.split()
    assert verdict == "wrong"
    assert "0.weight[5, 2]" in alone
    for line in lines:
        assert line.split()[:2] == [verdict, ratio]
        assert line.split("|")[1] == alone.split("|")[1]
        assert "2 processes" in line
    assert sum(int(line.split()[-1]) for line in lines) < 1.25 * int(alone.split()[-1])
