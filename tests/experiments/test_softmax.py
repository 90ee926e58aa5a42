"""The softmax experiment, run small; its claims fed with results they must not approve."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.softmax import HIDDEN, NAME, SoftmaxConfig, bend, claims, convexity, main
from tests.experiments._outputs import check_outputs, outcome
from torchnotes.nn import MLP


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(SoftmaxConfig(quick=True, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="3_classes_linear")
    assert {path.name for path in folder.glob("*.png")} == {"boundaries.png", "scores.png"}


def test_the_notes_numbers(run):
    _, results = run
    powers = [math.exp(z) for z in (5, 2, -1, 3)]
    assert results.shares == pytest.approx([p / sum(powers) for p in powers], rel=1e-14)
    assert [round(share, 3) for share in results.shares] == [0.842, 0.042, 0.002, 0.114]
    assert [round(power, 1) for power in results.powers] == [148.4, 7.4, 0.4, 20.1]
    assert results.one_hot[0] == pytest.approx(math.log(sum(powers)) - 2)  # −log ŷ₂ = log Σ e^z − z₂


def test_what_a_quick_run_can_tell_holds(run):
    _, results = run
    assert [claim.held for claim in results.reading] == [True, True, True, True, None, True, True]


def test_every_claim_can_be_refuted(run):
    _, results = run
    planes = {
        (classes, hidden): replace(plane, bend=0.1 if not hidden else 0.0)
        for (classes, hidden), plane in results.planes.items()
    }
    wrong = replace(
        results,
        judged=True,
        shares=[0.9, 0.04, 0.002, 0.1],
        large=[math.nan] * 3,
        twins=[(0.1, 0.1, 1e-3)],
        planes=planes,
        gradient=1e-3,
        one_hot=(1.0, 2.0),
    )
    assert [claim.held for claim in claims(wrong)] == [False] * 7
    fewer = {key: replace(p, bend=0.2, error=0.0 if key[1] else 0.1) for key, p in results.planes.items()}
    assert outcome(claims(replace(results, judged=True, planes=fewer)), "With hidden layers") is True


def test_bend_and_convexity_tell_a_ring_from_a_line():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    straight = MLP([2, 3])
    assert bend(straight, x) < 1e-12
    assert convexity(straight, x, 0) == 1.0

    class Ring(MLP):
        def forward(self, input):
            return torch.stack(
                [input.square().sum(-1), torch.ones_like(input[..., 0])], -1
            )  # class 0 outside the unit circle

    assert bend(Ring([2, HIDDEN, 2]), x) > 1e-3
    assert convexity(Ring([2, HIDDEN, 2]), x, 0) < 0.99
