"""The batch norm experiment, run small; its claims fed with results they must not approve."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.batch_norm.__main__ import main
from experiments.batch_norm.measuring import GAINS, NAME, RATES, BatchNormConfig, deep_net
from experiments.batch_norm.reading import claims, learned
from tests.experiments._outputs import check_outputs, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(BatchNormConfig(quick=True, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="with_batch_norm")
    assert {path.name for path in folder.glob("*.png")} == {"rates.png", "shift.png", "noise.png"}


def test_identities_hold_to_round_off(run):
    _, results = run
    assert results.identity < 1e-13  # float64, values of about 10
    assert max(results.bias) < 1e-13
    assert results.running == pytest.approx((0.0, 8 / 7, 8 / 7), abs=1e-12)
    assert results.single[1].startswith("Expected more than 1 value per channel when training")


def test_a_quick_run_refutes_nothing(run):
    _, results = run
    assert not [claim for claim in results.reading if claim.held is False]


def test_noise_of_a_standard_normal_sample_is_about_one_over_the_root_of_the_size(run):
    _, results = run
    # ẑ = (z − μ)/σ; μ has variance 1/m and the relative error of σ ẑ²(κ − 1)/(4m), ẑ² about 1: 1/√m to 1.3/√m
    assert 0.8 < results.noise[64] * math.sqrt(64) < 2
    assert outcome(claims(replace(results, noise=dict.fromkeys(results.noise, 0.1))), "other samples") is False


def test_layers_with_it_have_no_bias_and_the_notes_average():
    net = deep_net(2, True, seed=0, device=torch.device("cpu"))
    assert [type(layer).__name__ for layer in net] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert net[0].bias is None
    assert net[1].average == 0.9


def test_every_claim_can_hold_and_be_refuted(run):
    _, results = run

    def judged(better: bool):
        """All results in favour of batch norm, or of doing without."""
        costs = {(n, 2, rate): 0.1 if n == better or rate == RATES[3] else 2.0 for n in (True, False) for rate in RATES}
        costs[better, 2, RATES[4]] = 0.01
        return claims(
            replace(
                results,
                judged=True,
                costs=costs,
                scales={(n, gain): 0.1 if n == better else 2.0 for n in (True, False) for gain in GAINS},
                shifts={better: [(0.1, 0.1)], not better: [(1.0, 1.0)]},
                gaps={
                    (True, 8): [0.1, 0.11, 0.1],
                    (False, 8): [0.2, 0.2, 0.21] if better else [0.0, 0.0, 0.01],
                    (True, 300): [0.1, 0.1, 0.1],
                    (False, 300): [0.1, 0.1, 0.1],
                },
                test={
                    "the notes' running averages": 0.05,
                    "PyTorch's running averages": 0.05,
                    "PyTorch's, one image at a time": 0.05 if better else 0.06,
                    "the dev set's own statistics": 0.05,
                    "statistics of two images at a time": 0.5 if better else 0.05,
                },
            )
        )

    words = ("less sensitive", "scales of the initial", "trains faster", "shifts less", "regularises", "At test time",
             "as well as")  # fmt: skip
    for text in words:
        assert outcome(judged(True), text) is True, text
        assert outcome(judged(False), text) is False, text
    broken = replace(results, identity=1e-3, bias=(1.0, 0.0), running=(0.0, 1.0, 8 / 7))
    for text in ("it is the identity", "redundant", "m/(m − 1)"):
        assert outcome(claims(broken), text) is False, text


def test_an_output_that_does_not_change_at_all_is_said_in_words(run):
    _, results = run
    for apart, words in ((0.0, "is the same to the last bit; in training"), (3e-16, "is the same to 3e-16; in")):
        (claim,) = [c for c in claims(replace(results, single=(apart, "no"))) if "At test time" in c.text]
        assert words in claim.evidence
    (claim,) = [c for c in claims(replace(results, identity=0.0)) if "it is the identity" in c.text]
    assert claim.evidence == "Largest |z̃ − z| exactly 0, in float64."


def test_gaps_within_chance_are_not_judged(run):
    _, results = run
    gaps = {(n, s): [0.1, 0.3, 0.2] if n else [0.3, 0.1, 0.2] for n in (True, False) for s in (8, 300)}
    assert outcome(claims(replace(results, judged=True, gaps=gaps)), "regularises") is None


def test_learned_counts_finite_low_costs(run):
    _, results = run
    costs = {(True, 2, 0.1): 0.1, (True, 2, 1.0): math.inf, (True, 6, 0.1): 0.1, (False, 2, 0.1): 0.1}
    assert learned(replace(results, costs=costs), True) == [0.1, 0.1]
    assert learned(replace(results, costs=costs), True, 2) == [0.1]
