"""Shallow and deep nets: linear layers collapse, slopes are the notes', and every claim can fail."""

import copy
import math

import pytest
import torch

from experiments.nets import new_net
from experiments.shallow_and_deep.__main__ import main
from experiments.shallow_and_deep.measuring import (
    ACTIVATIONS,
    DEEP,
    LINEAR,
    NAME,
    Lap,
    Results,
    ShallowAndDeepConfig,
    Trained,
    collapse,
    shapes,
)
from experiments.shallow_and_deep.reading import claims, wins
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, ShallowAndDeepConfig(quick=True, samples=100, log_dir=folder))


def test_results_of_a_run(run) -> None:
    folder, results = run
    # SPEC A2, A3: g'(0) = 1/4 and 1; in closed form g'(10) = e⁻¹⁰/(1 + e⁻¹⁰)² and 4/(e¹⁰ + e⁻¹⁰)².
    assert results.slopes["sigmoid"] == pytest.approx((0.25, math.exp(-10) / (1 + math.exp(-10)) ** 2), rel=1e-12)
    assert results.slopes["tanh"][0] == 1
    assert results.slopes["tanh"][1] == pytest.approx(1 / math.cosh(10) ** 2, rel=1e-6)  # 1 − y² cancels
    assert results.slopes["leaky_relu"] == (0.01, 1.0)  # at 0 itself: the left side's
    assert outcome(results.reading, "one linear map") is not None
    assert outcome(results.reading, "tanh is better than sigmoid") is None  # too short
    assert len(results.race) == 5 * len(ACTIVATIONS)
    check_artifacts(folder, results, ["regions.png", "units.png", "activations.png"])
    curve = events(folder / "one_hidden_layer").Scalars(
        "1 Planar flower, one hidden layer (horizontal: units)/train error"
    )
    assert [e.step for e in curve] == list(results.shallow)


def test_a_linear_net_collapses_and_another_does_not() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert collapse(new_net([2, 8, 8, 8, 8, 1], "identity", seed=1), x) < 1e-13
    net = new_net([2, 8, 1], seed=0)
    assert shapes(net) == []  # no gradient yet
    net(x).sum().backward()
    assert shapes(net) == ["(8, 2)", "(1, 8)"]


def trained(error: float) -> list[Trained]:
    return [Trained(new_net([2, 1], seed=0), error, error)]


def good() -> Results:
    results = Results(torch.zeros(1, 2), torch.zeros(1, 1), single=trained(0.5), collapse=1e-15)
    results.shallow = {1: trained(0.3), 50: trained(0.1)}
    results.deep = {**{name: trained(0.05) for name in DEEP}, LINEAR: trained(0.5)}
    results.slopes = {"sigmoid": (0.25, 4e-5), "tanh": (1.0, 8e-9)}
    results.shapes = ["(8, 2)", "(8, 8)", "(8, 8)", "(1, 8)"]
    order = {"sigmoid": 40.0, "tanh": 30.0, "relu": 20.0, "leaky_relu": 10.0}
    results.race = {(p, a): Lap(1.0, (steps,), [], 100) for p in ("flower", "digits") for a, steps in order.items()}
    return results


def test_every_claim_holds_on_good_results_and_can_fail() -> None:
    assert all(claim.held for claim in claims(good()))
    faults = {
        "hidden layer of non-linear units": {"single": trained(0.1)},
        "bigger net": {"shallow": {1: trained(0.1), 50: trained(0.12)}},
        "deep net of narrow layers": {"deep": {**good().deep, **{name: trained(0.2) for name in DEEP}}},
        "one linear map": {"collapse": 1e-3},
        "has the shape": {"shapes": ["(2, 8)"]},
        "slope of sigmoid": {"slopes": {"sigmoid": (0.25, 8e-9), "tanh": (1.0, 4e-5)}},
    }
    for words, fault in faults.items():
        results = good()
        vars(results).update(fault)
        assert outcome(claims(results), words) is False, words


@pytest.mark.parametrize(
    ("loser", "words"),
    [("tanh", "tanh is better"), ("relu", "fewer steps than tanh"), ("leaky_relu", "Leaky ReLU does better")],
)
def test_an_activation_that_does_not_arrive_has_not_won(loser: str, words: str) -> None:
    results = good()
    results.race = copy.copy(results.race)
    results.race["flower", loser] = Lap(1.0, (math.inf,), [], 100)
    assert outcome(claims(results), words) is False
    assert wins(results, loser, "sigmoid") == (["digits"], ["flower"])
    if loser == "tanh":
        (claim,) = [c for c in claims(results) if words in c.text]
        assert "Fewer steps on 1 of 2 problems" in claim.evidence
        assert "flower: over 100 steps against 40" in claim.evidence
