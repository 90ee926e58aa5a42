"""Logistic regression by hand: right, the same with and without loops, and its claims can fail."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.logistic_regression import (
    NAME,
    LogisticRegressionConfig,
    Results,
    by_autograd,
    claims,
    main,
    one_loop,
    two_loops,
    vectorised,
)
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, LogisticRegressionConfig(quick=True, iterations=60, log_dir=folder))


def test_every_way_of_writing_a_step_gives_the_notes_figures() -> None:
    # One sample with z = 0: a = 1/2, L = ln 2, dz = a - y = -1/2, dw = x dz.
    x, y, w = torch.tensor([[2.0, 4.0]]).double(), torch.ones(1, 1).double(), torch.zeros(2, 1).double()
    assert two_loops(x.tolist(), [1.0], [0.0, 0.0], 0.0) == (math.log(2), [-1.0, -2.0], -0.5)
    for way in (one_loop, vectorised, by_autograd):
        step = way(x, y, w, 0.0)
        assert step.cost == pytest.approx(math.log(2), rel=1e-15)
        assert step.dw.tolist() == [[-1.0], [-2.0]]
        assert step.db == -0.5


def test_results_of_a_run(run) -> None:
    folder, results = run
    assert results.by_hand[0] == pytest.approx(math.log(2), abs=1e-12)  # all zero: a = 1/2 for everyone
    assert results.by_hand == pytest.approx(results.neuron, rel=1e-9)
    assert results.minimum < results.by_hand[-1]
    assert outcome(results.reading, "same J, dw and db")
    assert outcome(results.reading, "single neuron")
    assert outcome(results.reading, "J falls")
    assert outcome(results.reading, "arrives at the minimum") is None  # 60 steps
    check_artifacts(folder, results, ["cost.png", "time.png"])
    for variant in ("by_hand", "neuron"):
        curve = {e.step: e.value for e in events(folder / variant).Scalars("1 Training/J with the L2 penalty")}
        assert curve[1] == pytest.approx(math.log(2), abs=1e-6)
        assert max(curve) == 60


GOOD = Results(
    differences={"one loop": 1e-15, "vectorised": 2e-15, "nn.Linear": 1e-15},
    by_hand=[0.7 - 1e-5 * i for i in range(5000)],
    neuron=[0.7 - 1e-5 * i for i in range(5000)],
    minimum=0.7 - 1e-5 * 4999,
    scores=(-5.0, 5.0),
    activations=(0.01, 0.99),
    errors={"train": 0.01, "dev": 0.01, "test": 0.01},
    seconds={("two loops", 10): 1.0, ("vectorised", 10): 2.0, ("two loops", 99): 10.0, ("vectorised", 99): 2.0},
)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("same J, dw and db", {"differences": {"vectorised": 1e-6}}),
        ("loops are slow", {"seconds": {**GOOD.seconds, ("two loops", 99): 1.0}}),
        ("single neuron", {"neuron": [0.7 - 1.1e-5 * i for i in range(5000)]}),
        ("J falls", {"by_hand": [*GOOD.by_hand[:-1], 1.0]}),
        ("arrives at the minimum", {"minimum": 0.5}),
        ("between 0 and 1", {"activations": (0.01, 1.2)}),
    ],
)
def test_each_claim_can_fail(words: str, wrong: dict) -> None:
    assert outcome(claims(GOOD), words) is True
    assert outcome(claims(replace(GOOD, **wrong)), words) is False
