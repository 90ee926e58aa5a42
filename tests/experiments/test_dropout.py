"""The dropout experiment, run small: masks and passes in closed form, and every claim can fail."""

from dataclasses import replace

import pytest
import torch

from experiments.dropout.__main__ import main
from experiments.dropout.measuring import (
    EVERY,
    FIXED,
    FRESH,
    INPUT,
    KEEP_PROBS,
    LARGEST,
    NAME,
    NONE,
    OFF,
    SMALLEST,
    DropoutConfig,
    Mask,
    Results,
    Trained,
    mask,
    net_with,
    squared_norm,
)
from experiments.dropout.reading import advantage, claims
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, DropoutConfig(quick=True, few=60, log_dir=folder))


def test_mask_keeps_the_notes_figures() -> None:
    found = mask(0.8, 4000, seed=1, device="cpu")
    # Binomial(50, 0.2): mean 10, variance 8; of the mean over 4,000 samples √(8/4000) = 0.0447.
    assert found.zeroed_error == pytest.approx((8 / 4000) ** 0.5, rel=0.05)
    assert found.zeroed == pytest.approx(10, abs=4 * found.zeroed_error)
    assert found.mean == pytest.approx((50 - found.zeroed) / 50 / 0.8, rel=1e-3)  # realised probability k/65536
    assert found.undivided == pytest.approx(0.8 * found.mean)
    assert mask(1.0, 10, seed=1, device="cpu") == Mask(0.0, 0.0, 1.0, 0.0, 1.0, 0)


def test_nets_of_one_seed_start_alike_whatever_their_dropout() -> None:
    weights = [[p for p in net_with(keep, 3, "cpu")[0].parameters() if p.dim() == 2] for keep in KEEP_PROBS.values()]
    assert all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))
    net, _ = net_with(KEEP_PROBS[NONE], 0, "cpu")
    assert squared_norm(net) == pytest.approx(sum(float(p.square().sum()) for p in weights_of(net)), rel=1e-6)


def weights_of(net: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in net.parameters() if p.dim() == 2]


def test_results_of_a_run(run) -> None:
    folder, results = run
    assert outcome(results.reading, "10 are zeroed")
    assert outcome(results.reading, "expected output is unchanged")
    assert outcome(results.reading, "falls at every step; with it on")
    assert outcome(results.reading, "one mask held fixed")
    assert outcome(results.reading, "prevents overfitting") is None
    check_artifacts(folder, results, ["cost.png", "passes.png"])
    curve = events(folder / "off").Scalars("1 Full-batch gradient descent/J")
    assert [e.value for e in curve] == pytest.approx(results.costs[OFF], rel=1e-6)


def good() -> Results:
    results = Results(off_error=0.05, one_pass_errors=(0.2, 0.3), average_error=0.05)
    results.masks = {0.8: Mask(10.01, 0.02, 1.001, 0.001, 0.8, 0), 1.0: Mask(0, 0, 1, 0, 1, 0)}
    falling = [1.0, 0.5, 0.25]
    results.costs = {OFF: falling, FRESH: [1.0, 0.5, 0.6], FIXED: falling}
    errors = {NONE: 0.1, EVERY: 0.05, LARGEST: 0.06, SMALLEST: 0.08, INPUT: 0.15}
    for name, error in errors.items():
        dev = tuple(error + 0.001 * k for k in range(3))
        results.trained[name] = Trained((0.0,) * 3, dev, (50.0 if name == EVERY else 60.0,) * 3)
    results.passes = {1: (0.9, 0.8), 100: (0.1, 0.99)}
    return results


def test_every_claim_holds_on_good_results() -> None:
    assert [claim.text for claim in claims(good()) if not claim.held] == []
    assert advantage(good(), EVERY, NONE) == pytest.approx((0.05, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("words", "attribute", "key", "wrong"),
    [
        ("10 are zeroed", "masks", 0.8, Mask(11.0, 0.02, 1.001, 0.001, 0.8, 0)),
        ("10 are zeroed", "masks", 0.8, Mask(10.0, 0.02, 1.001, 0.001, 0.8, 3)),
        ("expected output", "masks", 0.8, Mask(10.0, 0.02, 0.8, 0.001, 0.8, 0)),
        ("falls at every step; with it on", "costs", FRESH, [1.0, 0.5, 0.4]),
        ("falls at every step; with it on", "costs", OFF, [1.0, 0.5, 0.6]),
        ("one mask held fixed", "costs", FIXED, [1.0, 0.5, 0.6]),
        ("prevents overfitting", "trained", EVERY, Trained((0.0,) * 3, (0.05, 0.15, 0.1), (50.0,) * 3)),
        ("lowest at the largest", "trained", LARGEST, Trained((0.0,) * 3, (0.09,) * 3, (50.0,) * 3)),
        ("half of the inputs", "trained", INPUT, Trained((0.0,) * 3, (0.05,) * 3, (50.0,) * 3)),
        ("shrinks", "trained", EVERY, Trained((0.0,) * 3, (0.05,) * 3, (70.0,) * 3)),
        ("average of many passes", "passes", 100, (0.8, 0.99)),
        ("average of many passes", "passes", 100, (0.1, 0.9)),
    ],
)
def test_each_claim_can_fail(words: str, attribute: str, key: object, wrong: object) -> None:
    results = good()
    getattr(results, attribute)[key] = wrong
    assert outcome(claims(results), words) is False


def test_disturbed_predictions_can_fail() -> None:
    assert outcome(claims(replace(good(), one_pass_errors=(0.05, 0.05))), "disturbs") is False
