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

rank, world, store, unlike = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "unlike"
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
torch.manual_seed(rank if unlike else 0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
torch.manual_seed(1)
x, y = torch.randn(10, 6).double(), torch.randint(3, (10,))
try:
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    print(report.verdict, f"{report.ratio:.12e}", report.method, int(report.evaluations))
except ValueError as error:
    print("refused", error)
if world > 1:
    dist.destroy_process_group()
"""


def launch(tmp_path, world, mode="alike"):
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
