"""Two processes with gloo: one record for both, one of them writes, and neither is ever left waiting."""

import json
import math
import os
import socket
import subprocess
import sys

import pytest
import torch

from torchnotes.diagnostics import moments
from torchnotes.diagnostics.distributed import pool


def test_pooling_is_exact():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, generator=generator) * s + m for n, s, m in ((100, 1, 0), (7, 1e-3, 50), (33, 20, -3))]
    parts[1][3], parts[2][5] = math.nan, 0.0
    pooled, whole = pool([moments(part) for part in parts]), moments(torch.cat(parts))
    for name in ("rms", "log10_rms", "mean", "std", "max_abs", "share_zero"):
        assert getattr(pooled, name) == pytest.approx(getattr(whole, name), rel=1e-6), name
    assert (pooled.count, pooled.nonfinite) == (140, 1)


def test_pooling_what_float64_squares_cannot_hold():
    pooled = pool(
        [moments(torch.full((3,), 1e-200, dtype=torch.float64)), moments(torch.zeros(3, dtype=torch.float64))]
    )
    assert pooled.log10_rms == pytest.approx(-200 + math.log10(0.5) / 2)


def test_pooling_nothing():
    assert math.isnan(pool([moments(torch.empty(0)), moments(torch.tensor([math.nan]))]).rms)


WORKER = """
import json, os, sys, warnings
import torch, torch.distributed as dist
from torch import nn
from torchnotes.diagnostics import SignalMonitor
from torchnotes.init import initialize_

dist.init_process_group("gloo", init_method=os.environ["INIT"], rank=int(sys.argv[1]), world_size=2)
rank = dist.get_rank()


def scenario(kind):
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    initialize_(net, generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))[4 * rank : 4 * rank + 4]
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        model = fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    else:
        model = nn.parallel.DistributedDataParallel(net)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    records = []

    def sink(record):
        records.append(record)
        if kind == "fails" and record.step == 2:
            raise OSError("disk full")

    log_dir = os.path.join(os.environ["LOGS"], kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SignalMonitor(model, log_dir, every=2, sinks=[sink]) as monitor:
            for step in range(9):
                opt.zero_grad()
                model(x).square().mean().backward()
                opt.step()
    out = {
        "records": [
            [r.step, [[l.label, l.activation.count, l.activation.rms, l.gradient and l.gradient.rms,
                       l.weight.rms if l.weight else None,
                       l.weight_gradient.rms if l.weight_gradient else None] for l in r.layers]] for r in records
        ],
        "aside": monitor.aside,
        "warnings": [str(w.message) for w in caught if "SignalMonitor" in str(w.message)],
    }
    with open(os.path.join(os.environ["LOGS"], f"{kind}{rank}.json"), "w") as file:
        json.dump(out, file)


for kind in ("ddp", "fails", "fsdp"):
    scenario(kind)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All scenarios in one pair of processes: starting them takes longer than running them."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "INIT": f"tcp://127.0.0.1:{port}",
        "LOGS": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.getcwd(),
    }
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in ranks:
            process.kill()

    def results(kind):
        return [json.loads((folder / f"{kind}{rank}.json").read_text()) for rank in range(2)], folder / kind

    return results


def single_process():
    """The same step on both halves of the batch together."""
    from torch import nn

    from torchnotes.diagnostics import probe
    from torchnotes.init import initialize_

    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    initialize_(net, generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    return probe(net, x, loss=lambda y: y.square().mean()).layers


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_records_are_those_of_the_whole_batch_and_one_rank_writes(run, kind):
    (first, second), folder = run(kind)
    assert not first["aside"], first["warnings"]
    assert second["records"] == []
    assert [step for step, _ in first["records"]] == [0, 2, 4, 6, 8]
    assert len(list(folder.glob("events*"))) == 1
    for found, expected in zip(first["records"][0][1], single_process(), strict=True):
        label, count, activation, gradient, weight, weight_gradient = found
        assert (label, count) == (expected.label, expected.activation.count)
        assert activation == pytest.approx(expected.activation.rms, rel=1e-5)
        # Each rank's loss is the mean over its own half: its gradients are twice those of the whole batch's mean.
        if expected.weight:
            assert gradient == pytest.approx(2 * expected.gradient.rms, rel=1e-5)
            assert weight == pytest.approx(expected.weight.rms, rel=1e-5)
            assert weight_gradient == pytest.approx(expected.weight_gradient.rms, rel=1e-4)


def test_a_rank_that_steps_aside_takes_the_others_along(run):
    """The writing rank's disk is full: both train on to the end, neither waits for the other."""
    (first, second), _ = run("fails")
    assert first["aside"]
    assert "disk full" in first["warnings"][0]
    assert second["aside"]
    assert "another rank has stepped aside" in second["warnings"][0]
