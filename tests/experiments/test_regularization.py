"""Regularisation on few digits, run small: data, penalties and images as told, and every claim can fail."""

from dataclasses import replace

import pytest
import torch

from experiments.regularization.__main__ import main
from experiments.regularization.measuring import (
    DROP,
    IMAGES,
    L1,
    L2,
    NAME,
    NONE,
    SIZES,
    STOP,
    STRENGTHS,
    RegularizationConfig,
    Results,
    Trained,
    few_digits,
    more_images,
    small_share,
    spoil,
    train,
)
from experiments.regularization.reading import claims, gain
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small
from torchnotes.data import shared_samples
from torchnotes.nn import MLP


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, RegularizationConfig(quick=True, few=40, log_dir=folder))


def test_few_digits_leave_the_rest_for_dev_and_test() -> None:
    sets = few_digits(RegularizationConfig(few=150), seed=0)
    assert (len(sets.x_train), len(sets.x_dev)) == pytest.approx((150, 400), abs=5)
    assert len(sets.x_train) + len(sets.x_dev) + len(sets.x_test) == 1797
    assert sorted(sets.y_train.unique().tolist()) == list(range(10))
    assert len(shared_samples(sets.x_train, sets.x_test)) == 0
    assert (sets.x_train.min(), sets.x_train.max()) == (0, 1)


def test_images_are_moved_a_little_and_not_flipped() -> None:
    x = few_digits(RegularizationConfig(few=50), seed=0).x_train
    moved = more_images(x, 0.5, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    flipped = x.view(-1, 8, 8).flip(-1).flatten(1)
    assert (moved - x).norm() < (moved - flipped).norm()
    assert not torch.equal(moved, x)


def test_small_weights_are_counted_by_layer() -> None:
    net = MLP([2, 2, 1])
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.001], [0.1, 0.0]]))
        net[2].weight.copy_(torch.tensor([[0.001, 0.001]]))  # large for its layer
    assert small_share(net) == pytest.approx(2 / 6)


def test_l1_and_l2_do_what_they_are_for() -> None:
    sets = few_digits(RegularizationConfig(few=60), seed=0)
    plain, two, one = (train(kind, s, sets, 150, 0) for kind, s in ((NONE, 0.0), (L2, 10.0), (L1, 3.0)))
    assert two.norm < 0.9 * plain.norm
    assert one.sparse > 2 * plain.sparse
    assert len(plain.dev_costs) == 15
    stopped = train(STOP, 1.0, spoil(sets, 0.5, 0), 400, 0)  # half of the labels wrong: the dev cost turns soon
    assert stopped.dev_costs.index(min(stopped.dev_costs)) == stopped.stopped / 10 - 1
    assert len(stopped.dev_costs) == stopped.stopped / 10 + 1


def test_results_of_a_run(run) -> None:
    folder, results = run
    assert list(results.runs) == list(STRENGTHS)
    assert all(claim.held is None for claim in results.reading)
    check_artifacts(folder, results, ["errors.png", "costs.png", "augmented.png"])
    curve = events(folder / "none").Scalars("1 Training on few digits, some labels wrong/dev cost")
    assert [e.value for e in curve] == pytest.approx(results.runs[NONE][0].dev_costs, rel=1e-6)
    assert SIZES == (64, 100, 50, 10)


PLAIN = Trained(0.0, 0.12, 0.12, 300.0, 0.02, (1.0, 0.5, 0.7), 30)
BETTER = replace(PLAIN, dev=0.08, test=0.08)


def good() -> Results:
    runs = dict.fromkeys((L2, L1, IMAGES, STOP, DROP), BETTER)
    runs = {NONE: PLAIN, **runs, L2: replace(BETTER, norm=100.0), STOP: replace(BETTER, norm=200.0)}
    runs[L1] = replace(BETTER, sparse=0.5)
    return Results(
        {(labels, name): 1.0 for name in runs for labels in ("right", "wrong")},
        {name: [run, run, run] for name, run in runs.items()},
        {name: [run, run, run] for name, run in runs.items()},
        with_penalty=[3.0, 2.0, 1.5],
        without_penalty=[1.0, 0.5, 0.6],
    )


def test_every_claim_holds_on_good_results() -> None:
    assert [claim.text for claim in claims(good()) if not claim.held] == []
    assert gain(good().runs, L2) == pytest.approx((0.04, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("words", "remedy", "change"),
    [
        ("L2 regularisation reduces", L2, {"test": 0.13}),
        ("L1 regularisation reduces", L1, {"test": 0.12}),
        ("turning, cropping", IMAGES, {"test": 0.13}),
        ("Early stopping reduces", STOP, {"test": 0.13}),
        ("Dropout reduces", DROP, {"test": 0.13}),
        ("weights small", L2, {"norm": 301.0}),
        ("weights small", STOP, {"norm": 301.0}),
        ("sparse", L1, {"sparse": 0.03}),
        ("sparse", DROP, {"sparse": 0.9}),
        ("first falls and then rises", NONE, {"dev_costs": (1.0, 0.7, 0.5)}),
    ],
)
def test_each_claim_can_fail(words: str, remedy: str, change: dict) -> None:
    results = good()
    results.runs[remedy] = [replace(run, **change) for run in results.runs[remedy]]
    assert outcome(claims(results), words) is False


def test_the_claim_about_right_labels_needs_every_remedy() -> None:
    results = good()
    results.clean[STOP] = [PLAIN] * 3
    (claim,) = [claim for claim in claims(results) if "right labels" in claim.text]
    assert claim.held is False
    assert "early stopping 0.0 ± 0.0" in claim.evidence


def test_wrong_labels_are_a_share_of_the_training_set_alone() -> None:
    sets = few_digits(RegularizationConfig(few=150), seed=0)
    spoilt = spoil(sets, 0.2, seed=0)
    assert int((spoilt.y_train != sets.y_train).sum()) == round(0.2 * len(sets.y_train))
    assert torch.equal(spoilt.y_dev, sets.y_dev)
    assert torch.equal(spoil(sets, 0.2, seed=0).y_train, spoilt.y_train)
    with pytest.raises(ValueError, match=r"wrong must be a share of the labels, in \[0, 1\), got 1.5"):
        RegularizationConfig(wrong=1.5)


def test_a_gain_within_chance_has_not_held() -> None:
    results = good()
    results.runs[DROP] = [replace(BETTER, test=test) for test in (0.02, 0.11, 0.18)]
    assert outcome(claims(results), "Dropout reduces") is False


@pytest.mark.parametrize("change", [{"with_penalty": [3.0, 2.0, 2.5]}, {"without_penalty": [3.0, 2.0, 1.5]}])
def test_the_claim_about_j_can_fail(change: dict) -> None:
    assert outcome(claims(replace(good(), **change)), "the J to watch") is False
