"""The faster evaluators give the plain loop's differences, and do the work they claim to save."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data, net, seeded
from torchnotes.gradcheck import _chain, check_gradients
from torchnotes.gradcheck._batched import BatchEvaluator, agrees, model_batch
from torchnotes.gradcheck._chain import ChainEvaluator, chain_of
from torchnotes.gradcheck._evaluate import LoopEvaluator, unravel
from torchnotes.gradcheck._objective import Cost, model_objective
from torchnotes.gradcheck.check import _evaluators


def evaluators(model, x, y, memory=1 << 24):
    cost = Cost(model, F.cross_entropy, None)
    objective = model_objective(cost, x, y, None, ())
    base, _ = objective.prepare()
    objective.rows = torch.ones(1, 1, dtype=torch.float64)
    found = chain_of(cost, objective, x, y)
    chain = None if found is None else ChainEvaluator(objective, base, *found, memory)
    batch = BatchEvaluator(objective, base, model_batch(cost, objective, x, y), memory, 1024)
    return LoopEvaluator(objective, base), chain, batch


MODELS = {
    "tanh": net,
    "relu": lambda: net(nn.ReLU),
    "softmax inside": lambda: seeded(
        nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 3)).double()
    ),
    "nested": lambda: nn.Sequential(net(sizes=(6, 5, 4)), nn.Sequential(nn.Tanh(), net(sizes=(4, 3)))),
}


@pytest.mark.parametrize("name", ["tanh", "relu", "softmax inside", "nested"])
def test_chain_differences_equal_the_loops(name):
    """Every coordinate, both sides: to the round-off of a cost near 1, a few 1e-16."""
    loop, chain, batch = evaluators(MODELS[name](), *data())
    for t, tensor in enumerate(loop.objective.tensors):
        index = torch.arange(tensor.numel())
        for h in (1e-2, -1e-2):
            step = torch.full((tensor.numel(),), h, dtype=torch.float64)
            want = loop.delta(t, index, step)
            torch.testing.assert_close(chain.delta(t, index, step), want, rtol=0, atol=4e-15)
            torch.testing.assert_close(batch.delta(t, index, step), want, rtol=0, atol=4e-15)


@pytest.mark.parametrize("memory", [1, 10_000])
def test_little_memory_only_means_smaller_batches(memory):
    loop, chain, batch = evaluators(net(), *data(), memory=memory)
    step = torch.full((30,), 1e-3, dtype=torch.float64)
    want = loop.delta(0, torch.arange(30), step)
    torch.testing.assert_close(chain.delta(0, torch.arange(30), step), want, rtol=0, atol=4e-15)
    torch.testing.assert_close(batch.delta(0, torch.arange(30), step), want, rtol=0, atol=4e-15)


def test_layers_before_the_perturbed_one_are_not_computed_again():
    model, (x, y) = net(), data()
    _, chain, _ = evaluators(model, x, y)
    calls = {k: 0 for k in range(5)}
    for k, layer in enumerate(model):
        layer.register_forward_pre_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    chain.delta(2, torch.arange(20), torch.full((20,), 1e-3, dtype=torch.float64))  # 2.weight, all in one batch
    assert calls == {0: 0, 1: 0, 2: 0, 3: 1, 4: 0}  # 4 takes its rank-one change without a call


class Mixing(nn.Module):
    """Not a chain of independent samples: each sample sees the batch's mean."""

    def forward(self, x):
        return x - x.mean(0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


@pytest.mark.parametrize(
    "layer", [Mixing(), Residual(), nn.BatchNorm1d(6), nn.Dropout(0.5)], ids=lambda layer: type(layer).__name__
)
def test_what_is_no_chain_falls_back_and_is_still_right(layer):
    model = seeded(nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3)).double())
    x, y = data()
    loop, chain, _ = evaluators(model, x, y)
    assert chain is None or not agrees(chain, loop, torch.Generator().manual_seed(0))
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "correct", str(report)
    assert "chain" not in report.method


def test_the_chain_and_the_batch_are_used():
    x, y = data()
    assert check_gradients(net(), x, y, loss=F.cross_entropy).method == "exact (chain)"
    with_penalty = check_gradients(net(), x, y, loss=F.cross_entropy, penalty=lambda m: m[0].weight.square().sum())
    assert with_penalty.method == "exact (chain)"
    mixing = nn.Sequential(nn.Linear(6, 3), Mixing()).double()
    assert check_gradients(mixing, x, y, loss=F.cross_entropy).method == "exact (vmap)"


def loops_over_python_numbers(model):
    """No vmap goes through this penalty, so its differences are taken one by one."""
    return sum(abs(float(w.detach())) * w for w in model[0].weight.reshape(-1))


@pytest.mark.parametrize(
    "penalty",
    [
        lambda m: 0.3 * sum(p.square().sum() for p in m.parameters()),
        lambda m: 1e6 * m[0].weight.abs().sum() + m[2].bias.square().sum(),
        lambda m: (m[0].weight.norm() * m[4].weight.norm()).log(),
        loops_over_python_numbers,
    ],
    ids=["L2", "L1 of one layer", "a product of two layers", "not vmappable"],
)
def test_a_penalty_is_differenced_apart_from_the_layers(penalty):
    """Rows: J, data cost, penalty; each to the round-off of its own size."""
    model, (x, y) = net(), data()
    cost = Cost(model, F.cross_entropy, penalty)
    objective = model_objective(cost, x, y, None, ())
    base, _ = objective.prepare()
    objective.rows = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    fast = next(_evaluators(cost, objective, base, (x, y), 1 << 24))
    assert fast.name == "chain"
    loop = LoopEvaluator(objective, base)
    size = (objective.rows * base.detach()).abs().sum(1, keepdim=True)
    for t, tensor in enumerate(objective.tensors):
        index, step = torch.arange(tensor.numel()), torch.full((tensor.numel(),), 1e-2, dtype=torch.float64)
        apart = (fast.delta(t, index, step) - loop.delta(t, index, step)).abs()
        assert bool((apart <= 2.0**-46 * size).all())


LOSSES = {
    "function": (F.cross_entropy, True),
    "module": (nn.CrossEntropyLoss(), True),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), True),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), True),
    "weighted mean": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), False),
    "a lambda": (lambda out, y: F.cross_entropy(2 * out, y), False),
    "mixes samples": (
        lambda out, y, reduction="mean": F.cross_entropy(out - out.mean(0), y, reduction=reduction),
        False,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_many_outputs_at_once_is_the_loss(name, monkeypatch):
    """By rows where the loss is an average or sum over them; a loss that is not must be seen to be none."""
    loss, by_rows = LOSSES[name]
    calls = []
    original = _chain._by_rows
    monkeypatch.setattr(_chain, "_by_rows", lambda *args: counted(original(*args), calls))
    outputs = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = _chain._batched_loss(Cost(net(), loss, None), data()[1])
    want = torch.stack([loss(o, data()[1]) for o in outputs])
    torch.testing.assert_close(every(outputs), want, rtol=1e-14, atol=0)
    calls.clear()
    every(outputs)
    assert bool(calls) == by_rows


def counted(way, calls):
    def same(outputs):
        calls.append(1)
        return way(outputs)

    return same


def test_a_shortcut_that_disagrees_is_not_used():
    loop, chain, _ = evaluators(net(), *data())
    assert agrees(chain, loop, torch.Generator().manual_seed(0))
    chain._calls[0].x = chain._calls[0].x * 1.001
    assert not agrees(chain, loop, torch.Generator().manual_seed(0))


def test_unravel_is_row_major():
    assert [unravel(i, (2, 3)) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert unravel(0, ()) == ()
