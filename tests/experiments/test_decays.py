"""The experiment on learning-rate decay, run small; its claims fed with results they must not approve."""

from dataclasses import replace

import pytest

from experiments.decays import ALPHA, NAME, DecaysConfig, Descent, claims, main, tables
from tests.experiments._outputs import check_outputs, events, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(DecaysConfig(quick=True, epochs=12, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="by_hand")
    assert {path.name for path in folder.glob("*.png")} == {"excess.png", "rates.png"}
    curve = events(folder / "exponential").Scalars("1 Learning rate of each decay (horizontal: epoch)/learning rate")
    assert [point.value for point in curve] == pytest.approx(
        [0.95**epoch for epoch in range(12)]
    )  # what was trained at


def test_rates_are_those_of_the_notes_formulas(run):
    _, results = run
    rows = {row[0]: [float(cell) for cell in row[2:]] for row in tables(results)[0].rows}
    assert rows["inverse time"] == [0.2, 0.1, 0.0667, 0.05, 0.04]  # the notes' formula with decay rate 1
    assert rows["inverse root"] == [0.2, 0.2, 0.1414, 0.1155, 0.1]
    assert rows["exponential"] == [0.2, 0.19, 0.1805, 0.1715, 0.1629]


def test_a_quick_run_judges_only_the_formulas(run):
    _, results = run
    assert [claim.held for claim in results.reading] == [True, None, None, None, None]


def test_every_claim_can_hold_and_be_refuted(run):
    _, results = run

    def descent(first: float, middle: float, end: float) -> Descent:
        return Descent((1.0,) * 12, (first,) * 3 + (middle,) * 6 + (end,) * 3)

    def judged(constant: Descent, small: Descent, decayed: Descent):
        return claims(
            replace(
                results,
                judged=True,
                constant={ALPHA: constant, 0.03: small},
                decayed=dict.fromkeys(results.decayed, decayed),
            )
        )

    usual = judged(descent(0.1, 0.01, 0.01), descent(0.9, 0.1, 0.02), descent(0.1, 0.005, 0.001))
    assert all(claim.held for claim in usual)
    settles = judged(descent(0.1, 0.01, 1e-4), descent(0.15, 0.1, 1e-4), descent(0.2, 0.1, 0.05))
    for words in ("wandering", "nearer the minimum", "as fast at the beginning", "No constant rate"):
        assert outcome(settles, words) is False, words
    wrong = {**results.schedules, "staircase": ([1.0, 0.5], [1.0, 0.25])}
    assert outcome(claims(replace(results, schedules=wrong)), "staircase") is False


def test_refuses_too_few_epochs():
    with pytest.raises(ValueError, match="epochs must be at least 8, got 3"):
        DecaysConfig(epochs=3)
