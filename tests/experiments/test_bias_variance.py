"""Bias and variance, run small: the notes' table, the recipe's order, and every claim can fail."""

from dataclasses import replace

import pytest
import torch

from experiments.bias_variance.__main__ import main
from experiments.bias_variance.measuring import (
    AGAINST_BIAS,
    AGAINST_VARIANCE,
    NAME,
    NOTES,
    BiasVarianceConfig,
    Calls,
    Fit,
    Pool,
    Results,
    Setup,
    Step,
    diagnose,
    follow_recipe,
    train,
)
from experiments.bias_variance.reading import claims, rank_correlation
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small
from torchnotes.data import shared_samples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, BiasVarianceConfig(quick=True, dev=200, log_dir=folder))


def test_dev_images_are_never_trained_on_and_normalised_by_the_training_set() -> None:
    pool = Pool.load(0, 797, "cpu")
    assert len(shared_samples(pool.x[:1000], pool.x[1000:])) == 0
    (x, y), (x_dev, y_dev) = pool.sets(100)
    assert (len(x), len(y), len(x_dev), len(y_dev)) == (100, 100, 797, 797)
    assert x.mean(0).abs().max() < 1e-5
    assert x_dev.mean(0).abs().max() > 0.01


def test_each_change_of_the_setup_changes_the_training() -> None:
    pool = Pool.load(0, 100, "cpu")
    plain = Setup(units=5, samples=64, steps=5)
    weights = [
        train(setup, pool, 0)[0][0].weight.detach()
        for setup in (plain, replace(plain, momentum=0.9), replace(plain, decay=5.0), replace(plain, steps=6))
    ]
    for k, first in enumerate(weights):
        assert all(not torch.equal(first, second) for second in weights[k + 1 :])
    assert torch.equal(train(plain, pool, 0)[0][0].weight, weights[0])


def test_recipe_turns_to_bias_first_and_stops_when_both_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([Fit(0.3, 0.5), Fit(0.2, 0.4), Fit(0.0, 0.2), Fit(0.0, 0.1), Fit(0.0, 0.0)])
    monkeypatch.setattr("experiments.bias_variance.measuring.train", lambda *_: (None, next(told)))
    steps = follow_recipe(Pool(torch.zeros(0), torch.zeros(0), 800), 0, 20)
    assert [step.against for step in steps] == ["", "bias", "bias", "variance", "variance"]
    assert [step.done for step in steps[1:]] == [
        *(name for name, _ in AGAINST_BIAS[:2]),
        *(name for name, _ in AGAINST_VARIANCE[:2]),
    ]
    assert steps[-1].setup == replace(Setup(), units=30, momentum=0.9, samples=1000, steps=1200)


def test_rank_correlation() -> None:
    assert rank_correlation([5.0, 4.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 3.0, 2.0]) == pytest.approx(0.5)
    assert rank_correlation([1.0, 1.0]) == 0


def test_results_of_a_run(run) -> None:
    folder, results = run
    assert results.verdicts == NOTES  # SPEC F10
    assert outcome(results.reading, "is high variance")
    assert outcome(results.reading, "lowers the bias") is None
    check_artifacts_but_texts(folder, results)
    steps = events(folder / "train").Scalars("3 The recipe, step by step/error")
    assert [e.value for e in steps] == pytest.approx([step.errors.train for step in results.recipe], rel=1e-6)


def check_artifacts_but_texts(folder, results) -> None:
    check_artifacts(folder, results, ["curves.png", "recipe.png"])
    texts = events(folder / "overview").Tensors("3 The recipe, step by step/text_summary")
    assert len(texts) == len(results.recipe)


def step(against: str, train_error: float, dev_error: float) -> Step:
    errors, setup = Fit(train_error, dev_error), Setup(samples=5000)
    return Step("", against, setup, errors, diagnose(errors, setup, 5000))


def good() -> Results:
    return Results(
        dict(NOTES),
        {1: [Fit(0.5, 0.5)], 8: [Fit(0.2, 0.3)], 64: [Fit(0.0, 0.1)]},
        {50: [Fit(0.0, 0.3)], 200: [Fit(0.0, 0.1)], 1000: [Fit(0.001, 0.05)]},
        [step("", 0.3, 0.5), step("bias", 0.0, 0.2), step("variance", 0.0, 0.01)],
        Calls("high", 50, {"low": 0.1, "high": 0.9, "unclear": 0.0}, {"low": 0.0, "high": 0.3, "unclear": 0.7}),
    )


def test_every_claim_holds_on_good_results() -> None:
    assert [claim.text for claim in claims(good()) if not claim.held] == []


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("is high variance", {"verdicts": {**NOTES, (0.01, 0.11, 0.0): "high bias"}}),
        ("lowers the bias", {"sizes": {1: [Fit(0.0, 0)], 8: [Fit(0.2, 0)], 64: [Fit(0.1, 0)]}}),
        ("lowers the variance", {"data": {50: [Fit(0.0, 0.1)], 200: [Fit(0.0, 0.2)], 1000: [Fit(0.0, 0.3)]}}),
        ("lowers the variance", {"data": {50: [Fit(0.1, 0.3)], 200: [Fit(0.05, 0.1)], 1000: [Fit(0.0, 0.01)]}}),
        ("The recipe", {"recipe": [step("", 0.3, 0.5), step("bias", 0.0, 0.2)]}),
        ("sampling error", {"calls": Calls("high", 50, {"low": 0.1}, {"low": 0.06, "unclear": 0.0})}),
        ("sampling error", {"calls": Calls("low", 50, {"high": 0.01}, {"high": 0.02, "unclear": 0.0})}),
    ],
)
def test_each_claim_can_fail(words: str, wrong: dict) -> None:
    assert outcome(claims(replace(good(), **wrong)), words) is False
