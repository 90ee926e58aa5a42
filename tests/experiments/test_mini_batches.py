"""The mini-batch experiment, run small; its claims fed with results of which they must not approve."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.convex import DECAY, Regression
from experiments.digits import load_digits
from experiments.mini_batches.__main__ import main
from experiments.mini_batches.measuring import NAME, Lap, MiniBatchesConfig, Noise
from experiments.mini_batches.reading import claims
from tests.experiments._outputs import check_outputs, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(MiniBatchesConfig(quick=True, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="batch_0064")
    assert {path.name for path in folder.glob("*.png")} == {"paths.png", "race.png", "noise.png"}


def test_a_quick_run_refutes_nothing(run):
    _, results = run
    assert not [claim for claim in results.reading if claim.held is False]


def test_noise_is_that_of_sampling_without_replacement(run):
    _, results = run
    noise, m = results.noise, results.samples
    assert m == 500
    assert noise[64].known / noise[1].known == pytest.approx(math.sqrt((m - 64) / (64 * (m - 1))))
    assert noise[m].known == 0
    assert noise[m].measured < 1e-6
    assert (
        outcome(claims(replace(results, noise={**noise, 64: Noise(1.2 * noise[1].known, 0.1, 0.01)})), "noisier")
        is False
    )


def test_the_last_batch_is_what_is_left(run):
    _, results = run
    assert results.last_batch == 500 - 7 * 64
    assert outcome(claims(replace(results, last_batch=64)), "last batch") is False


def test_race_is_judged_by_epochs_and_seconds(run):
    _, results = run

    def lap(seconds: float, epochs: float, steps: int = 10) -> Lap:
        return Lap(0.1, True, steps, ((epochs, seconds, 0.01),))

    def judged(one: float, some: float, whole: float):
        race = {1: lap(one, 2, 1000), 64: lap(some, 3), 500: lap(whole, 30)}
        return claims(replace(results, judged=True, race=race))

    usual = judged(5.0, 0.1, 0.5)
    assert outcome(usual, "fastest size lies in between") is True
    assert outcome(usual, "Below 2,000") is False
    assert outcome(usual, "gets further than one") is True
    assert outcome(usual, "vectorisation") is True  # 5 ms a sample against 10 ms for 64
    tie = judged(5.0, 0.5, 0.5)
    assert outcome(tie, "fastest size lies in between") is None
    assert outcome(tie, "Below 2,000") is True
    assert outcome(judged(5.0, 0.9, 0.5), "fastest size lies in between") is False


def test_floors_powers_and_shuffling_can_be_refuted(run):
    _, results = run
    wrong = replace(
        results,
        judged=True,
        floors={1: 1e-3, 64: 2e-3, 500: 0.0},
        per_sample=dict.fromkeys(results.per_sample, 1e-6),
        shuffled=dict.fromkeys(results.shuffled, next(iter(results.shuffled.values()))),
        costs={size: [1.0, 2.0] for size in results.costs},
    )
    for words in ("never settle", "power of two", "shuffled anew", "falls at every step"):
        assert outcome(claims(wrong), words) is False, words


def test_the_convex_cost_has_its_minimum_where_its_gradient_vanishes():
    digits = load_digits(seed=0)
    problem = Regression(replace(digits, x_train=digits.x_train[:200], y_train=digits.y_train[:200]))
    least, net = problem.minimum()
    x, y = problem.digits.x_train.double(), problem.digits.y_train
    residual = net(x).softmax(1) - torch.nn.functional.one_hot(y, 10)  # dJ/dW = (ŷ − y)ᵀ x/m + λ/m W, by hand
    assert (residual.T @ x / 200 + DECAY * net.weight).abs().max() < 1e-7
    assert problem.value(problem.start()) == pytest.approx(math.log(10), abs=1e-6)
    assert least < math.log(10)


def test_refuses_a_target_that_guessing_reaches():
    with pytest.raises(ValueError, match=r"target must be a cost above 0 and below ln 10 = 2.3.*got 3.0"):
        MiniBatchesConfig(target=3.0)
