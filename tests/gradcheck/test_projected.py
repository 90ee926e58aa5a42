"""Random directions: unbiased, with an honest interval, and group testing that names what is wrong."""

import math

import pytest
import torch
import torch.nn.functional as F

from experiments.benchmarks.gradcheck_transformer import Config, main
from tests.gradcheck._nets import data, faulty_net, net
from torchnotes.gradcheck import check_gradients
from torchnotes.gradcheck._directions import Block, Probe, halves, region_size, without
from torchnotes.gradcheck._objective import Cost, model_objective
from torchnotes.gradcheck._projected import chi_square_interval

SIZES = (20, 30, 30, 3)


def entries_off(*where):
    def fault(gx, gw, gb, w):
        rms = gw.square().mean().sqrt()
        gw = gw.clone()
        for row, column in where:
            gw[row, column] += rms
        return gx, gw, gb

    return fault


def check(model, **options):
    x, y = data(16, 20)
    return check_gradients(model, x, y, loss=F.cross_entropy, method="projected", **options)


def test_a_right_net_takes_less_than_100_evaluations():
    report = check(net(sizes=SIZES))
    assert report.verdict == "correct"
    assert report.evaluations <= 100
    assert report.interval[0] <= report.ratio <= report.interval[1]
    assert 0 < report.smallest_visible < 1e-7
    assert "smallest error of one entry" in str(report)


@pytest.mark.parametrize("where", [[(7, 3)], [(0, 0), (29, 29), (13, 4)]])
def test_wrong_entries_are_named(where):
    report = check(faulty_net(entries_off(*where), SIZES))
    assert report.verdict == "wrong"
    found = {e.index for e in report.worst(10) if e.parameter == "2.weight"}
    assert found == set(where)
    assert report.evaluations <= 400


def test_a_cancelling_pair_is_found():
    """+δ and −δ in two entries: directions of ±1 miss them half the time, normal ones never."""

    def pair(gx, gw, gb, w):
        gw = gw.clone()
        gw[1, 1] += 1e-2
        gw[2, 2] -= 1e-2
        return gx, gw, gb

    report = check(faulty_net(pair, SIZES))
    assert {e.index for e in report.worst(4)} == {(1, 1), (2, 2)}


@pytest.mark.parametrize(
    ("fault", "says"),
    [(lambda gx, gw, gb, w: (gx, -gw, gb), "sign"), (lambda gx, gw, gb, w: (gx, 4 * gw, gb), "4 × too large")],
)
def test_a_tensor_wrong_throughout_is_said_to_be_so(fault, says):
    report = check(faulty_net(fault, SIZES))
    pattern = report.by_parameter["2.weight"].pattern
    assert pattern.startswith("wrong throughout")
    assert says in pattern
    assert report.evaluations <= 400


def test_the_search_keeps_to_its_budget_and_says_so():
    report = check(faulty_net(entries_off((7, 3)), SIZES), max_evaluations=90)
    assert report.verdict == "wrong"
    assert report.evaluations <= 100
    assert any("ended early" in note for note in report.notes)


def test_the_estimate_of_the_squared_residual_is_unbiased():
    """Z · r over many z has mean square ‖r‖²: within 4 standard errors, √(2/400) each."""
    model, (x, y) = net(sizes=(6, 5, 3)), data()
    cost = Cost(model, F.cross_entropy, None)
    objective = model_objective(cost, x, y, None, ())
    base, _ = objective.prepare()
    objective.rows = torch.ones(1, 1, dtype=torch.float64)
    (exact,) = objective.gradients()
    wrong = [g + 0.1 * torch.ones_like(g) for g in exact]
    probe = Probe(objective, float(base.detach()), wrong, seed=0, memory=1 << 20)
    everything = tuple(Block(t, 0, v.numel()) for t, v in enumerate(objective.tensors))
    probe.calibrate(everything)
    squares = [probe.residual(everything, k) ** 2 for k in range(400)]
    truth = 0.01 * sum(g.numel() for g in exact)
    assert sum(squares) / 400 == pytest.approx(truth, rel=4 * math.sqrt(2 / 400))


def test_directions_are_the_same_with_little_memory():
    model, (x, y) = net(sizes=(6, 5, 3)), data()
    objective = model_objective(Cost(model, F.cross_entropy, None), x, y, None, ())
    probes = [Probe(objective, 0.0, [], seed=3, memory=memory) for memory in (0, 1 << 20)]
    for t in range(4):
        assert torch.equal(probes[0].direction(2, t), probes[1].direction(2, t))


def test_halves_cover_a_region_once():
    region = (Block(0, 0, 10), Block(1, 0, 3), Block(2, 0, 4))
    left, right = halves(region)
    assert left + right == region
    assert halves((Block(0, 4, 9),)) == ((Block(0, 4, 6),), (Block(0, 6, 9),))
    assert region_size(region) == 17


def test_chi_square_interval_against_tables():
    # χ²₈ quantiles at 0.975 and 0.025: 17.535 and 2.180 (tables)
    low, high = chi_square_interval(8)
    assert low == pytest.approx(math.sqrt(8 / 17.535), rel=1e-3)
    assert high == pytest.approx(math.sqrt(8 / 2.180), rel=1e-3)


def test_a_small_transformer_right_and_planted():
    results = main(
        Config(
            layers=2, width=32, heads=2, vocabulary=60, tokens=8, planted_layer=1, planted_row=100, planted_column=20
        )
    )
    assert results["right"]["verdict"] == "correct"
    assert results["right"]["forward_equivalents"] <= 100
    assert results["planted"]["verdict"] == "wrong"
    assert results["planted"]["worst"][0].startswith("blocks.1.up.weight[100, 20]")
    assert results["planted"]["forward_equivalents"] <= 400


class Clipped(torch.nn.Module):
    """Σ c · clip(w)³ with some entries of w a hair's breadth from the corner at 1, and a fault in one of the others."""

    def __init__(self, corners, wrong=None):
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.2, 0.8, 1000, dtype=torch.float64))
        with torch.no_grad():
            self.w[list(corners)] = 1 - 1e-9
        self.wrong = wrong

    def forward(self):
        clipped = self.w.clamp(max=1.0)
        if self.wrong is not None and clipped.requires_grad:
            clipped.register_hook(lambda g: g + (torch.arange(1000) == self.wrong))
        return (torch.linspace(1, 2, 1000, dtype=torch.float64) * clipped**3).sum()


@pytest.mark.parametrize("corners", [(37,), (37, 38, 600)])
def test_a_kink_within_the_step_is_no_wrong_entry(corners):
    """The gradient just below the corner is 3c, the difference along a direction mixes it with the 0 beyond."""
    report = check_gradients(Clipped(corners), (), method="projected")
    assert report.verdict == "correct", str(report)
    assert report.by_parameter["w"].kinks == len(corners)
    assert f"entries with a kink within the step, measured by themselves: {len(corners)}" in str(report)
    assert report.refined_ratio < 1e-7 < report.ratio


def test_a_wrong_entry_beside_a_kink_is_named_alone():
    report = check_gradients(Clipped((37, 600), wrong=400), (), method="projected")
    assert report.verdict == "wrong"
    assert [e.index for e in report.worst(10)] == [(400,)]
    assert report.by_parameter["w"].kinks == 2


def test_kinks_beyond_the_budget_are_inconclusive():
    report = check_gradients(Clipped(range(0, 1000, 50)), (), method="projected")
    assert report.verdict == "inconclusive", str(report)
    assert "lies at kinks, or could not be told from them" in report.reason


def test_entries_are_left_out_of_a_region():
    region = (Block(0, 0, 10), Block(1, 0, 3))
    left = without(region, [(0, 0), (0, 4), (1, 2)])
    assert left == (Block(0, 1, 4), Block(0, 5, 10), Block(1, 0, 2))
