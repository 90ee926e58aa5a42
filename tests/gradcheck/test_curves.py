"""One curve for all weights of a unit: the plain loop's differences, for a fraction of its work, or none at all."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import net, seeded
from torchnotes.gradcheck import check_gradients
from torchnotes.gradcheck._chain import ChainEvaluator, chain_of
from torchnotes.gradcheck._curves import Curves
from torchnotes.gradcheck._evaluate import LoopEvaluator
from torchnotes.gradcheck._objective import Cost, model_objective

SIZES = (20, 16, 18, 5)
STEPS = (1e-7, 1e-5, 1e-3, 1e-2)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(m=12, classes=5):
    return torch.randint(classes, (m,), generator=torch.Generator().manual_seed(2))


def chain_and_loop(model, x, y, loss=F.cross_entropy, memory=1 << 24):
    cost = Cost(model, loss, None)
    objective = model_objective(cost, x, y, None, ())
    base, _ = objective.prepare()
    objective.rows = torch.ones(1, 1, dtype=torch.float64)
    return ChainEvaluator(objective, base, *chain_of(cost, objective, x, y), memory), LoopEvaluator(objective, base)


@pytest.fixture
def fits(monkeypatch):
    """Every measurement of curves that is made, in order."""
    made, real = [], Curves.fit

    def fit(self, units, h):
        made.append(real(self, units, h))
        return made[-1]

    monkeypatch.setattr(Curves, "fit", fit)
    return made


def one_sample_constant():
    x = randn(12, 20)
    x[3], x[7] = 0, 2
    return x


def zeroed():
    model = net(nn.ReLU, SIZES)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    return model


CASES = {
    "tanh": (net(sizes=SIZES), randn(12, 20), F.cross_entropy),
    "relu": (net(nn.ReLU, SIZES), randn(12, 20), F.cross_entropy),
    "leaky relu": (net(nn.LeakyReLU, SIZES), randn(12, 20), F.cross_entropy),
    "clamped": (net(nn.Hardtanh, SIZES), randn(12, 20), F.cross_entropy),
    "every unit at its kink": (zeroed(), randn(12, 20), F.cross_entropy),
    "wide": (net(nn.ReLU, (150, 40, 30, 5)), randn(12, 150), F.cross_entropy),
    "a sample of zeros": (net(nn.ReLU, SIZES), one_sample_constant(), F.cross_entropy),
    "inputs of 1e6": (net(sizes=SIZES), 1e6 * randn(12, 20), F.cross_entropy),
    "inputs of 1e-6": (net(sizes=SIZES), 1e-6 * randn(12, 20), F.cross_entropy),
    "inputs from 1e-6 to 1e6": (net(sizes=SIZES), randn(12, 20) * torch.logspace(-6, 6, 20).double(), F.cross_entropy),
    "the last layer alone": (net(sizes=(20, 5)), randn(12, 20), F.cross_entropy),
    "one sample": (net(sizes=SIZES), randn(1, 20), F.cross_entropy),
    "a sum": (net(sizes=SIZES), randn(12, 20), nn.CrossEntropyLoss(reduction="sum")),
    "softmax within": (nn.Sequential(net(sizes=SIZES), nn.Softmax(-1)), randn(12, 20), F.mse_loss),
    "absolute errors": (net(sizes=SIZES), randn(12, 20), F.l1_loss),
    "a tiny loss": (
        net(sizes=SIZES),
        randn(12, 20),
        lambda o, y, reduction="mean": 1e-6 * F.cross_entropy(o, y, reduction=reduction),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_differences_are_the_plain_loops(name, fits):
    """To a few units in the last place of J, as both sides are rounded there, at small steps and large, with kinks.

    Ten of either evaluation's last places, 2⁻⁵², bound the sum of the round-off of layers, loss and mean in all cases.
    """
    model, x, loss = CASES[name]
    y = randn(len(x), 5, seed=3) if loss in (F.mse_loss, F.l1_loss) else labels(len(x))
    chain, loop = chain_and_loop(model, x, y, loss)
    for t, tensor in enumerate(chain.objective.tensors):
        index = torch.arange(tensor.numel())
        some = index[:: max(1, len(index) // 100)]
        for h in STEPS:
            for side in (h, -h):
                step = torch.full((len(index),), side, dtype=torch.float64)
                apart = (chain.delta(t, index, step)[:, some] - loop.delta(t, some, step[some])).abs().max()
                assert float(apart) <= 10 * 2.0**-52 * abs(float(loop.base)), (t, side)
    assert len(fits) >= len(STEPS)  # the curves were measured, whether or not they were found smooth


def test_the_curves_that_cross_a_kink_are_told_from_the_others(fits):
    """One sample's value of one unit lies 1e-4 from a ReLU's corner; all other values are far from it."""
    model = seeded(nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)).double())
    x = 1 + randn(6, 16).abs()
    with torch.no_grad():
        model[0].weight.fill_(0.25)
        model[0].bias.zero_()
        z = x @ model[0].weight[2]
        model[0].bias[2] = -z[5] + 1e-4 * x[5].max()  # the corner lies at −1e-4 max|x|, within ±1e-3 max|x|
        x[:5] += 1
    chain, loop = chain_and_loop(model, x, labels(6, 3))
    index, step = torch.arange(64), torch.full((64,), -1e-3, dtype=torch.float64)
    got = chain.delta(0, index, step)
    assert bool(fits[0].rough[2, 5])
    assert int(fits[0].rough.sum()) <= 2  # round-off may look like a kink once in a while, which costs time only
    torch.testing.assert_close(got, loop.delta(0, index, step), rtol=0, atol=4e-15)


def rows_seen(module):
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def test_a_unit_is_evaluated_at_a_few_shifts_whatever_the_number_of_its_weights():
    """At 1e-7: ±1 and ±0.7 of every unit for both sides of all of its 500 weights, ±2⁻²⁰ of eight of them for noise."""
    model, m = net(sizes=(500, 10, 5, 3)), 7
    chain, _ = chain_and_loop(model, randn(m, 500), labels(m, 3))
    assert chain._loss.separable  # which tries the loss, not the layers
    seen = rows_seen(model[3])
    index = torch.arange(5000)
    for side in (1e-7, -1e-7):
        chain.delta(0, index, torch.full((5000,), side, dtype=torch.float64))
    spot_checks = 4 * m
    assert sum(seen) == m * (4 * 10 + 2 * 8 + 1) + spot_checks


def test_curves_that_do_not_give_the_loops_differences_are_not_used(monkeypatch):
    """A reading that is wrong by a millionth: the plain loop at two entries of each side tells."""
    real = Curves.read
    monkeypatch.setattr(Curves, "read", lambda self, *args: real(self, *args) * (1 + 1e-6))
    chain, loop = chain_and_loop(net(sizes=SIZES), randn(12, 20), labels())
    index, step = torch.arange(320), torch.full((320,), 1e-2, dtype=torch.float64)
    torch.testing.assert_close(chain.delta(0, index, step), loop.delta(0, index, step), rtol=0, atol=4e-15)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.linspace(1, 2, 5, dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=2),
        lambda o, y: F.cross_entropy(o - o.mean(0), y),
    ],
    ids=["weighted mean", "ignored labels", "samples mixed"],
)
def test_a_loss_that_is_no_plain_mean_is_taken_as_before(loss, fits):
    assert bool((labels() == 2).any())
    chain, loop = chain_and_loop(net(sizes=SIZES), randn(12, 20), labels(), loss)
    index, step = torch.arange(320), torch.full((320,), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(chain.delta(0, index, step), loop.delta(0, index, step), rtol=0, atol=4e-15)
    assert not fits


def test_little_memory_means_few_units_at_once(fits):
    chain, loop = chain_and_loop(net(sizes=SIZES), randn(12, 20), labels(), memory=1)
    index, step = torch.arange(320), torch.full((320,), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(chain.delta(0, index, step), loop.delta(0, index, step), rtol=0, atol=4e-15)
    assert [len(fit.rough) for fit in fits] == [8, 8]


def test_the_round_off_of_a_sample_is_measured():
    """Terms rounded to steps of 2⁻³⁰, as a cost in float32 would be, have a round-off of 2⁻³⁰ / √12.

    200 samples of 8 units give the mean square to a tenth; a shift of 2⁻²⁰ r moves the term by 1,000 steps and bends it
    by less than a hundredth of one.
    """
    place = torch.arange(200, dtype=torch.float64)

    def terms(unit, shift):
        exact = torch.sin(place) + shift * (1 + unit[:, None]) * 2.0**20 + shift**2 * 2.0**20
        return torch.round(exact * 2.0**30) * 2.0**-30

    x = 1 + randn(200, 3).abs()
    noise = Curves(terms, x).fit(torch.arange(8), 1e-6).noise
    assert float(noise.square().mean().sqrt()) == pytest.approx(2.0**-30 / 12**0.5, rel=0.2)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_ratio_at_the_notes_eps_is_not_better_than_round_off_allows(activation):
    """J is a float64 number on either side: rounded by up to ulp/2, σ = ulp/√12, which 2ε divides; nor is it worse."""
    model, x, y = net(activation, SIZES), randn(12, 20), labels()
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.method == "exact (chain)"
    chain, loop = chain_and_loop(model, x, y)
    exact = chain.objective.gradients()[0][0].view(-1)
    index = torch.arange(320)
    up, down = (loop.delta(0, index, torch.full((320,), h, dtype=torch.float64))[0] for h in (1e-7, -1e-7))
    plain = float(((up - down) / 2e-7 - exact).norm() / (2 * exact.norm()))
    ulp = torch.nextafter(loop.base, 2 * loop.base) - loop.base
    least = float(ulp * (2 / 12) ** 0.5 / 2e-7 * 320**0.5 / (2 * exact.norm()))
    assert 0.8 * least <= report.by_parameter["0.weight"].ratio <= 1.2 * plain


class OneEntryOff(nn.Linear):
    def forward(self, x):
        weight = self.weight.clone()
        if weight.requires_grad:
            weight.register_hook(lambda g: g + 1e-5 * (torch.arange(g.numel()) == 37).view_as(g))
        return F.linear(x, weight, self.bias)


def test_a_wrong_entry_is_found_beside_curves(fits):
    model = net(sizes=SIZES)
    model[2] = OneEntryOff(16, 18).double()
    report = check_gradients(model, randn(12, 20), labels(), loss=F.cross_entropy)
    assert report.method == "exact (chain)"
    assert any(fit.rough.shape == (18, 12) for fit in fits)
    assert (report.worst(1)[0].parameter, report.worst(1)[0].index) == ("2.weight", (2, 5))
    assert report.by_parameter["2.weight"].wrong == 1


def test_a_first_check_does_not_import_the_compiler():
    """Which takes longer than the check: two seconds of every process."""
    code = (
        "import sys, torch; from torchnotes.gradcheck import check_gradients, check_function\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())\n"
        "assert check_gradients(model, torch.ones(2, 3), loss=torch.sum).verdict == 'correct'\n"
        "assert check_function(torch.sigmoid, torch.ones(2)).verdict == 'correct'\n"
        "print('torch._dynamo' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
