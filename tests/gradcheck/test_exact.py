"""The faster evaluators give the plain loop's differences, and do the work they claim to save."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data, net, seeded
from torchnotes.gradcheck import check_gradients
from torchnotes.gradcheck._batched import BatchEvaluator, agrees, model_batch
from torchnotes.gradcheck._chain import ChainEvaluator, chain_of
from torchnotes.gradcheck._evaluate import LoopEvaluator
from torchnotes.gradcheck._losses import ManyLosses
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


class Centred(nn.Module):
    """Subtracts a running mean that it writes to first, as batch norm does, and uses."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((6,), 0.5, dtype=torch.float64))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Recentred(Centred):
    """The same, with a new tensor in the old one's place."""

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), Centred(), Recentred()], ids=lambda layer: type(layer).__name__)
def test_models_that_write_to_their_buffers_are_batched(layer):
    """Every copy starts from the buffers as they were, and what it writes is its own."""
    model = seeded(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    model.insert(0, layer.double())
    x, y = data()
    kept = {name: b.clone() for name, b in model.named_buffers()}
    loop, _, batch = evaluators(model, x, y)
    index, step = torch.arange(18), torch.full((18,), 1e-2, dtype=torch.float64)
    last = len(loop.objective.tensors) - 2
    torch.testing.assert_close(batch.delta(last, index, step), loop.delta(last, index, step), rtol=0, atol=4e-15)
    assert agrees(batch, loop, torch.Generator().manual_seed(0))
    loop.objective._reset_buffers()
    assert check_gradients(model, x, y, loss=F.cross_entropy).method == "exact (vmap)"
    assert all(torch.equal(b, kept[name]) for name, b in model.named_buffers())


def test_an_operation_that_vmap_takes_one_by_one_does_not_warn():
    """A test suite in which warnings are errors, as this one is, must not fail for it."""

    class Lerped(nn.Module):
        def forward(self, x):
            return x.clone().lerp_(x.mean(0, keepdim=True).expand_as(x), 0.1)

    x, y = data()
    model = seeded(nn.Sequential(nn.Linear(6, 6), Lerped(), nn.Linear(6, 3)).double())
    assert check_gradients(model, x, y, loss=F.cross_entropy).method == "exact (vmap)"


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
    "function": (F.cross_entropy, "by rows"),
    "module": (nn.CrossEntropyLoss(), "by rows"),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), "by rows"),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), "by rows"),
    "weighted mean": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), "vmap"),
    "a lambda": (lambda out, y: F.cross_entropy(2 * out, y), "vmap"),
    "mixes samples": (
        lambda out, y, reduction="mean": F.cross_entropy(out - out.mean(0), y, reduction=reduction),
        "vmap",
    ),
    "not vmappable": (lambda out, y: F.cross_entropy(out * float(out.detach().max()), y), "loop"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_many_outputs_at_once_is_the_loss(name):
    """By rows where the loss is an average or sum over them; a loss that is not must be seen to be none."""
    loss, way = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 12, 3, generator=generator, dtype=torch.float64)
    base = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    target = data()[1]
    many = ManyLosses(loss, target, base)
    want = torch.stack([loss(o, target) for o in outputs])
    torch.testing.assert_close(many(outputs), want, rtol=1e-14, atol=0)
    rows = torch.tensor([1, 4, 11])
    mixed = base.expand(4, -1, -1).clone()
    mixed[:, rows] = outputs[:, rows]
    want = torch.stack([loss(o, target) for o in mixed])
    torch.testing.assert_close(many.where(rows, outputs[:, rows]), want, rtol=1e-14, atol=0)
    names = {many._by_rows: "by rows", many._loop: "loop"}
    assert names.get(many._way, "vmap") == way


def test_the_mean_of_squares_is_taken_by_rows_with_the_width_last():
    """With the samples last its terms would be paired with the wrong targets."""
    generator = torch.Generator().manual_seed(0)
    outputs, target = (torch.randn(*s, 3, generator=generator, dtype=torch.float64) for s in ((4, 12), (12,)))
    many = ManyLosses(F.mse_loss, target, outputs[0])
    want = torch.stack([F.mse_loss(o, target) for o in outputs])
    torch.testing.assert_close(many(outputs), want, rtol=1e-14, atol=0)
    assert many._way == many._by_rows


def test_inputs_of_zero_are_skipped():
    """W[j, k] does nothing where x[:, k] is 0: the differences are the loop's, and layers see other samples only."""
    model, (x, y) = net(), data()
    x = x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.5)
    x[:, 2] = 0
    loop, chain, _ = evaluators(model, x, y)
    index, step = torch.arange(30), torch.full((30,), 1e-2, dtype=torch.float64)
    want = loop.delta(0, index, step)
    torch.testing.assert_close(chain.delta(0, index, step), want, rtol=0, atol=4e-15)
    assert chain.delta(0, index[2::6], step[2::6]).abs().max() == 0
    seen = []
    model[3].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    chain.delta(0, index, step)
    assert sum(seen) == 5 * int((x != 0).sum())  # five units, and of each input the samples in which it is not 0
