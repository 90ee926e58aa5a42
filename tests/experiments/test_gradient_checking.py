"""The gradient checking experiment, run small: its claims hold and its logs can be read back."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.gradient_checking import GALLERY, GradientCheckingConfig, claims, main
from experiments.misprints import misprint_claims
from torchnotes import ops


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, main(GradientCheckingConfig(quick=True, log_dir=folder))


def test_the_notes_figures(run):
    _, results = run
    assert results.cube["central"] == pytest.approx(3.0001, abs=1e-9)
    assert results.cube["forward"] == pytest.approx(3.0301, abs=1e-9)


def test_every_claim_holds(run):
    _, results = run
    for claim in claims(results):
        assert claim.held, claim


def test_only_the_right_backward_is_called_correct(run):
    _, results = run
    assert [n for n, (_, r) in results.gallery.items() if r.verdict == "correct"] == ["right"]
    assert set(results.gallery) == set(GALLERY)


def test_float32_errors_are_far_larger_and_every_curve_is_a_v_or_its_arm(run):
    _, results = run
    for scheme in ("forward", "central", "five-point"):
        assert min(results.ratios[scheme, "float32"].values()) > 100 * min(results.ratios[scheme, "float64"].values())


def test_curves_picture_and_reports_are_in_the_logs(run):
    folder, _ = run
    root = folder / "gradient_checking"
    assert (root / "v_curve.png").stat().st_size > 10_000
    events = EventAccumulator(str(root / "two-sided_float64"))
    events.Reload()
    (tag,) = events.Tags()["scalars"]
    assert [e.step for e in events.Scalars(tag)] == list(range(1, 7))
    overview = EventAccumulator(str(root / "overview"))
    overview.Reload()
    assert len(overview.Tags()["tensors"]) == 1 + len(GALLERY)
    assert overview.Tags()["images"]


def test_misprints_are_judged_by_differences_and_can_be_refuted(run, monkeypatch):
    folder, _ = run
    reading = json.loads((folder / "gradient_checking" / "reading.json").read_text())
    assert [claim["held"] for claim in reading["claims"][-3:]] == [True] * 3
    monkeypatch.setattr(torch, "tanh", torch.sin)
    monkeypatch.setattr(torch, "outer", lambda dz, a: torch.ones(3, 4, dtype=torch.float64))
    monkeypatch.setattr(ops, "relu", torch.sigmoid)
    assert [claim.held for claim in misprint_claims(0)] == [False] * 3
