"""The experiment on hyperparameter search, run small; its claims fed with results they must not approve."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.hyperparameter_search import (
    HIGH,
    LOW,
    NAME,
    SIDE,
    HyperparameterSearchConfig,
    best_after,
    better,
    claims,
    grid,
    main,
)
from tests.experiments._outputs import check_outputs, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(HyperparameterSearchConfig(quick=True, log_dir=folder))


def kind(errors, rates=(0.001, 0.01, 0.2, 0.5)):
    """Searches of four trials that end with these errors."""
    return [
        [({"lr": rate, "decay": 0.1}, 0.9) for rate in rates[:-1]] + [({"lr": rates[-1], "decay": 0.1}, e)]
        for e in errors
    ]


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="random")
    assert {path.name for path in folder.glob("*.png")} == {"trials.png", "best.png", "importance.png"}


def test_every_kind_has_as_many_trials(run):
    _, results = run
    assert set(results.kinds) == {
        *("grid", "random", "linear scale", "coarse to fine", "random, Adam", "linear scale, Adam")
    }
    assert {len(found) for found_of in results.kinds.values() for found in found_of} == {SIDE}
    assert all(LOW <= params["lr"] <= HIGH for found in results.kinds["random"] for params, _ in found)


def test_a_grid_has_few_values_of_each_spread_evenly_over_the_decades():
    found = grid(lambda params: params["lr"], seed=0)
    rates = sorted({params["lr"] for params, _ in found})
    assert len(found) == SIDE**2
    assert len(rates) == len({params["decay"] for params, _ in found}) == SIDE
    for smaller, larger in pairwise(rates):
        assert larger / smaller == pytest.approx((HIGH / LOW) ** (1 / SIDE))


def test_best_after_is_the_mean_of_the_best_so_far():
    found = [[({}, 0.4), ({}, 0.5), ({}, 0.2)], [({}, 0.8), ({}, 0.1), ({}, 0.3)]]
    assert [m for m, _ in best_after(found)] == pytest.approx([0.6, 0.25, 0.15])
    assert best_after(found)[0][1] == pytest.approx(0.2)  # s = 0.4/√2 over √2


def test_better_needs_two_standard_errors():
    low, high = kind([0.1, 0.11, 0.1]), kind([0.2, 0.2, 0.21])
    assert better(low, high)[0] is True
    assert better(high, low)[0] is False
    assert better(kind([0.1, 0.3, 0.2]), kind([0.2, 0.1, 0.3]))[0] is None


def test_a_quick_run_refutes_nothing(run):
    _, results = run
    assert not [claim for claim in results.reading if claim.held is False]


def test_every_claim_can_hold_and_be_refuted(run):
    _, results = run
    low, middle, high = ([e, e + 0.01, e] for e in (0.05, 0.2, 0.4))
    ideal = replace(
        results,
        judged=True,
        kinds={
            "grid": kind(middle, (0.001, 0.001, 0.1, 0.1)),
            "random": kind([0.1, 0.11, 0.1], (0.0005, 0.004, 0.03, 0.3)),
            "linear scale": kind(high, (0.2, 0.4, 0.6, 0.8)),
            "coarse to fine": kind(low),
            "random, Adam": kind(low),
            "linear scale, Adam": kind(high),
        },
        momenta={"log of 1 − β": [0.95, 0.995], "linear": [0.95] * 9 + [0.995]},
        importance={"lr": 0.6, "beta": 0.2, "batch": 0.1, "hidden": 0.05, "layers": 0.04, "decay": 0.01},
    )
    read = claims(ideal)
    assert outcome(read, "On a linear scale nine") is False  # all of these draws are above 0.1, not nine in ten
    assert [claim.held for claim in read if "nine draws" not in claim.text] == [True] * 7
    kinds = ideal.kinds
    worse = replace(
        ideal,
        kinds={
            "grid": kinds["random"],
            "random": kinds["grid"],
            "linear scale": kinds["coarse to fine"],
            "coarse to fine": kinds["linear scale"],
            "random, Adam": kinds["random, Adam"],
            "linear scale, Adam": kinds["linear scale, Adam"],
        },
        momenta={"log of 1 − β": [0.95], "linear": [0.995]},
        importance={"decay": 0.6, "lr": 0.4, "beta": 0.1, "batch": 0.1, "hidden": 0.1},
    )
    assert {claim.held for claim in claims(worse)} == {False}
    tenth = kind(high, (0.05, *[0.2 + 0.01 * k for k in range(8)], 0.9))
    quarter = kind(low, (0.0005, 0.004, 0.03, 0.3))
    both = claims(replace(ideal, kinds={**kinds, "linear scale": tenth, "random": quarter}))
    assert outcome(both, "On a linear scale nine") is True


def test_refuses_too_few_searches():
    with pytest.raises(ValueError, match="searches must be at least 2 and trials at least 8, got 1 and 80"):
        HyperparameterSearchConfig(searches=1)
    assert math.isclose(HyperparameterSearchConfig().trials, 80)
