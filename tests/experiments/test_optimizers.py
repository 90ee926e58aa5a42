"""The experiment on the update rules, run small; its claims fed with results they must not approve."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.optimizers.__main__ import main
from experiments.optimizers.critical import KNOWN, positive_share
from experiments.optimizers.measuring import (
    EDGE,
    FAR,
    NAME,
    RATE,
    OptimizersConfig,
    Training,
    settled,
    wrong_first_steps,
)
from experiments.optimizers.reading import claims
from experiments.optimizers.rules import RULES, bowl, walk
from tests.experiments._outputs import check_outputs, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(OptimizersConfig(quick=True, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="gradient_descent")
    assert {path.name for path in folder.glob("*.png")} == {"bowl.png", "leaving.png", "minima.png", "digits.png"}


def test_gradient_descent_walks_the_bowl_by_its_closed_form():
    points = walk(bowl, [-8.0, 1.0], RULES["gradient descent"], 0.03, 20)
    assert len(points) == 21
    for step, (x, y) in enumerate(points):  # each step multiplies by 1 − α·curvature
        assert x == pytest.approx(-8 * 0.97**step)
        assert y == pytest.approx((1 - 0.03 * 50) ** step)


def test_settled_counts_the_last_step_above_the_target():
    start = [1.0, 0.0]
    assert settled([start, [0.01, 0.0], [0.5, 0.0], [0.01, 0.0], [0.0, 0.0]]) == 3
    assert settled([start, [0.5, 0.0]]) is None
    assert settled([start, [math.nan, 0.0]]) is None


def test_plateau_takes_as_long_as_the_sum_of_its_slopes(run):
    _, results = run
    w, steps = FAR, 0
    while w >= EDGE:  # the same walk by hand: w ← w − α σ² (1 − σ)
        sigma = 1 / (1 + math.exp(-w))
        w, steps = w - RATE * sigma**2 * (1 - sigma), steps + 1
    assert results.plateau_known == pytest.approx(steps, rel=0.02)
    assert results.plateau["gradient descent"] is None  # a quick run's patience ends before
    assert 10 < results.plateau["RMSprop"] < 100
    assert 10 < results.plateau["Adam"] < 100


def test_noise_alone_leaves_the_saddle(run):
    _, results = run
    for beside, on, noisy in results.saddle.values():
        assert on is None
        assert noisy is not None
        assert beside is not None
    # y grows by 1 + α each step, less near the end where y⁴ pulls back
    assert results.saddle["gradient descent"][0] == pytest.approx(math.log(0.5e6) / math.log(1.1), abs=3)


def test_first_steps_of_adam(run):
    _, results = run
    assert results.first_adam == pytest.approx((1.0, 10.0, 0.1 / math.sqrt(0.001)), rel=1e-6)
    assert wrong_first_steps()[0] == pytest.approx(10)


@pytest.mark.parametrize("dimension", KNOWN)
def test_share_of_positive_matrices_is_the_known_one(dimension):
    share, known = positive_share(dimension, 20_000, seed=3), KNOWN[dimension]
    assert share == pytest.approx(known, abs=4 * math.sqrt(known * (1 - known) / 20_000))


def test_critical_points_are_found_and_told_apart(run):
    _, results = run
    found, minima = results.nets[5]
    assert 0 < minima < found <= 40


def test_a_quick_run_refutes_only_the_place_of_epsilon(run):
    _, results = run
    assert [claim.text for claim in results.reading if claim.held is False] == [
        "Inside the root or outside it, ε = 1e-8 makes no difference there either."
    ]


def test_every_claim_can_be_refuted(run):
    _, results = run
    equal = {name: Training(0.1, (0.5,), 0.1) for name in RULES}
    wrong = replace(
        results,
        judged=True,
        bowl=dict.fromkeys(RULES, (0.1, 50)),
        swing=(1.0, 2.0),
        limits={"gradient descent": (0.04, 0.04), "momentum": (0.04, 0.76)},
        first=dict.fromkeys(RULES, 50.0),
        plateau=dict.fromkeys(RULES, 300),
        saddle=dict.fromkeys(RULES, (10, 10, None)),
        positive=dict.fromkeys(range(1, 8), 0.5),
        nets={5: (10, 9), 9: (10, 9)},
        digits=equal,
        conversion=0.1,
        epsilon_costs=(0.1, 0.2),
        first_adam=(10.0, 1.0, 1.0),
    )
    assert {claim.held for claim in claims(wrong)} == {False}
    same = dict.fromkeys(results.further, 100)
    assert outcome(claims(replace(results, further=same)), "Inside the root") is True
    sooner = {**equal, "gradient descent": Training(0.1, (0.6,), 0.1)}
    assert outcome(claims(replace(results, judged=True, digits=sooner)), "On the digits momentum") is True


def test_noise_is_of_the_seed():
    ways = [walk(bowl, [1.0, 1.0], RULES["Adam"], 0.1, 5, noise=0.1, seed=seed) for seed in (1, 1, 2)]
    assert ways[0] == ways[1] != ways[2]
    assert torch.tensor(ways[0]).isfinite().all()
