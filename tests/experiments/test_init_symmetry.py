"""Initial weights: copies stay copies, printed formulas give what arithmetic says, and every claim can fail."""

import math

import pytest
import torch

from experiments.init_symmetry.__main__ import main
from experiments.init_symmetry.measuring import NAME, STARTS, Formula, InitSymmetryConfig, Results, Start, spread
from experiments.init_symmetry.reading import claims, parted, span
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, InitSymmetryConfig(quick=True, steps=12, log_dir=folder))


def test_results_of_a_run(run) -> None:
    folder, results = run
    zeros, sigmoid = results.starts["zeros, tanh"], results.starts["zeros, sigmoid"]
    assert max(zeros.distances) == 0  # a = 0, so dW = 0 in both layers: only the last bias learns
    assert not zeros.moved
    assert sigmoid.moved
    assert sigmoid.distances[-1] < 1e-12
    assert zeros.costs[0] == sigmoid.costs[0] == pytest.approx(math.log(10), abs=1e-12)
    assert results.starts["0.01·randn"].distances[0] > 1
    assert outcome(results.reading, "same gradient")
    assert outcome(results.reading, "for ever") is None
    # Var z = n σ² for n = 256 inputs of variance 1; 250,000 values of z: a few per cent by chance.
    for row, variance in (("G2", 16.0), ("G3", 1 / 256), ("G4", 4.0), ("G5", 4 / 256), ("G10", 1.0)):
        assert results.formulas[row].expected == variance
        assert results.formulas[row].measured == pytest.approx(variance, rel=0.1)
    assert outcome(results.reading, "other formulas the notes print") is False
    check_artifacts(folder, results, ["symmetry.png", "gain.png"])
    curve = events(folder / "zeros_tanh").Scalars("1 One hidden layer on the digits/distance between hidden units")
    assert [e.value for e in curve] == [0.0] * 3


def test_spread_is_the_largest_difference_between_units() -> None:
    assert spread(torch.tensor([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0]])) == 0.5
    assert spread(torch.ones(3, 2)) == 0
    assert spread(torch.zeros(3, 2)) == 0


def start(far: float, gradients: float, error: float, *, flat: float = 0.0, cost: float = 0.1) -> Start:
    return Start([far] * 10, gradients, [cost] * 10, error, flat, moved=True)


def good() -> Results:
    copies, drawn = start(0.0, 0.0, 0.8), start(1.0, 1.0, 0.05)
    starts = [copies, copies, copies, drawn, drawn, start(1.0, 1.0, 0.3, flat=0.8, cost=0.9)]
    results = Results(dict(zip(STARTS, starts, strict=True)), one_unit=0.8, race_limit=100)
    results.formulas = {
        name: Formula(name, meant, meant, meant)
        for name, meant in (("√(1/n)", 1.0), ("G2", 1.0), ("G3", 1.0), ("√(2/n)", 2.0), ("G4", 2.0), ("G5", 2.0))
    }
    results.race = {"0.01²": math.inf, "1/n": 40.0, "2/(n_in+n_out)": 35.0, "2/n": 20.0}
    results.gains = {0.5: 0.11, 1.0: 0.1, 2.0: 0.12}
    results.rates = {0.5: 0.3, 1.0: 0.1, 2.0: 0.05}
    return results


def test_every_claim_holds_on_good_results() -> None:
    assert [claim.text for claim in claims(good()) if not claim.held] == []


@pytest.mark.parametrize(
    ("words", "key", "wrong"),
    [
        ("same gradient", "constant 0.1", start(0.0, 1e-3, 0.8)),
        ("for ever", "zeros, sigmoid", start(0.2, 0.0, 0.8)),
        ("worth one unit", "0.01·randn", start(1.0, 1.0, 0.8)),
        ("flat part", "10·√(1/n)·randn", start(1.0, 1.0, 0.1, flat=0.1, cost=0.9)),
    ],
)
def test_each_claim_about_a_start_can_fail(words: str, key: str, wrong: Start) -> None:
    results = good()
    results.starts[key] = wrong
    assert outcome(claims(results), words) is False


def test_the_other_claims_can_fail() -> None:
    results = good()
    results.formulas["√(1/n)"] = Formula("√(1/n)", 1.2, 1.0, 1.0)
    results.race = {"0.01²": 30.0, "1/n": 20.0, "2/(n_in+n_out)": 35.0, "2/n": 20.0}
    results.gains[2.0] = math.nan
    assert span(results.gains) == math.inf
    for words in ("gives z the variance of the inputs", "2/n does better", "too small", "low priority"):
        assert outcome(claims(results), words) is False, words


def evidence(results: Results, words: str) -> str:
    (claim,) = [claim for claim in claims(results) if words in claim.text]
    return claim.evidence


def test_no_difference_and_no_bound_are_said_in_words() -> None:
    results = good()
    results.starts["zeros, sigmoid"] = start(2.5e-6, 9e-16, 0.7)
    results.starts["constant 0.1"] = start(1.3, 1e-15, 0.2)
    assert "exactly 0 and 9e-16 from zeros (tanh, sigmoid), 1e-15 from a constant" in evidence(results, "same gradient")
    said = evidence(results, "for ever")
    assert "exactly 0 (zeros, tanh: they move), 2.5e-06 (zeros, sigmoid) and 1.3 (constant) of the largest" in said
    said = evidence(results, "low priority")
    assert said == (
        "From half to twice the gain, J after 100 steps varies by a factor of 1.2; from half to twice the rate, it "
        "varies by a factor of 6."
    )
    results.gains |= {1.41: math.inf, 2.0: math.nan, 4.0: math.inf}  # four times the gain is not asked about
    said = evidence(results, "low priority")
    assert said.startswith("From half to twice the gain, J after 100 steps diverges at ×2 and ×1.41; from half")


def test_parted_is_the_first_step_further_than_copies() -> None:
    assert parted(Start([0.0, 1e-3, 0.2, 0.05], 0, [], 0, 0, True)) == 2
    assert parted(Start([0.0, 1e-3], 0, [], 0, 0, True)) == math.inf
