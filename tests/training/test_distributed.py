"""Two processes against one."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from torchnotes import optim
from torchnotes.training import Callback, EarlyStopping, fit


class _Stop(Callback):
    def __init__(self, at):
        self.at = at

    def on_step(self, run):
        if run.step == self.at:
            run.stopped = True


def _train(path=None, stop_at=None, accumulate=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(45, 4, generator=generator, dtype=torch.float64)  # batches of 22, 22 and 1: uneven shares
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    run = fit(
        model,
        (x, x[:, :1].sin()),
        loss=F.mse_loss,
        optimizer=optim.Adam(model.parameters(), 0.01),
        epochs=4,
        batch_size=22,
        accumulate=accumulate,
        dev=(x[:10], x[:10, :1]),
        callbacks=[_Stop(stop_at), EarlyStopping()],
        checkpoint=path,
        checkpoint_every=2,
        clip_norm=0.5,
        progress=False,
    )
    return run.history, model.state_dict()


def _on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    whole = _train(folder / "whole.pt")
    pieces = _train(accumulate=3)
    _train(folder / "cut.pt", stop_at=5)
    state = torch.load(folder / "cut.pt") if rank == 0 else None
    if rank == 0:
        state["stopped"] = False  # as if it had been killed there, not ended
        torch.save(state, folder / "cut.pt")
    dist.barrier()
    resumed = _train(folder / "cut.pt")
    torch.save([whole, pieces, resumed], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_like_one(tmp_path):
    torch.multiprocessing.spawn(_on_rank, args=(tmp_path,), nprocs=2)
    one_history, one_state = _train()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for history, state in (*first[:2], *second[:2]):
        # sums in another order, over 12 steps of Adam
        for name, value in one_state.items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
        for ours, theirs in zip(history, one_history, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert abs(value - theirs[name]) < 1e-9
    for rank in (first, second):
        assert rank[2][0] == rank[0][0]  # resumed: the same bits
        assert all(torch.equal(value, rank[0][1][name]) for name, value in rank[2][1].items())
