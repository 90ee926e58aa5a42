"""Normalised inputs: scalings, minimum and descent checked in closed form, and every claim can fail."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from experiments.input_normalization import (
    ALIKE,
    NORMAL,
    PAIR,
    PRINTED,
    RAW,
    SCALINGS,
    TEN,
    UNCENTRED,
    WIDE,
    Descent,
    InputNormalizationConfig,
    Results,
    best_descent,
    claims,
    condition,
    main,
    minimum,
    profile,
    scaled,
    with_ones,
)
from tests.experiments._artifacts import check_artifacts, events, outcome, run_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, run_small(main, InputNormalizationConfig(quick=True, limit=60, log_dir=folder))


NAME = "input_normalization"


def table() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 30.0]) + 5
    y = (torch.rand(200, 1, generator=generator) < torch.sigmoid(x[:, :1].float() - 5)).double()
    return x, y


def test_scalings_in_closed_form() -> None:
    x, _ = table()
    found = scaled(x)
    sigma2 = x.var(0, unbiased=False)
    torch.testing.assert_close(found[NORMAL].var(0, unbiased=False), torch.ones(2).double())
    torch.testing.assert_close(found[PRINTED].var(0, unbiased=False), 1 / sigma2)  # SPEC G1
    torch.testing.assert_close(found[UNCENTRED].square().mean(0), torch.ones(2).double())


def test_minimum_and_condition_are_those_of_other_ways() -> None:
    x, y = table()
    normal = with_ones(scaled(x)[NORMAL])
    lowest, theta = minimum(normal, y)
    solver = LogisticRegression(C=math.inf, tol=1e-12).fit(normal[:, :2].numpy(), y[:, 0].numpy())
    assert theta[:2, 0].tolist() == pytest.approx(solver.coef_[0].tolist(), rel=1e-5)
    a = torch.sigmoid(normal @ theta)
    eigen = torch.linalg.eigvalsh((normal * a * (1 - a)).T @ normal)
    assert condition(normal[:, :2], y) == pytest.approx(float(eigen[-1] / eigen[0]), rel=1e-9)
    # The profile is at its least where Newton's method went, and is J there.
    assert profile(normal[:, :2], y, theta[:2].T).item() == pytest.approx(lowest, abs=1e-9)
    assert profile(normal[:, :2], y, theta[:2].T + 0.1).item() > lowest


def test_descent_arrives_and_says_when() -> None:
    x, y = table()
    normal = scaled(x)[NORMAL]
    lowest, _ = minimum(with_ones(normal), y)
    found = best_descent(normal, y, lowest, 100)
    start = math.log(2) - lowest
    assert found.above[0] == pytest.approx(start, rel=1e-9)
    assert found.above[int(found.steps)] <= 0.01 * start < found.above[int(found.steps) - 1]
    assert len(found.path) == len(found.above) == found.steps + 1
    assert math.isinf(best_descent(x, y, lowest, 5).steps)


def test_results_of_a_run(run) -> None:
    folder, results = run
    assert outcome(results.reading, "narrow bowl")
    assert outcome(results.reading, "fewer steps") is None
    assert outcome(results.reading, "Dividing by σ²") is False
    assert outcome(results.reading, "is the variance")
    check_artifacts(folder, results, ["contours.png", "steps.png"])
    assert events(folder / "raw").Scalars(f"1 J above its minimum/{PAIR}")[0].step == 0


def good() -> Results:
    results = Results(limit=100, variances={PRINTED: torch.ones(2), NORMAL: torch.ones(2)}, second_moment=(5.0, 1.0))
    for name in (PAIR, WIDE, TEN, ALIKE):
        for scaling in SCALINGS:
            slow = scaling == RAW and name != ALIKE
            rate, steps, ratio = (0.01, 90.0, 1e5) if slow else (1.0, 5.0, 3.0)
            results.descents[name, scaling] = Descent(rate, steps, ratio, [], torch.zeros(0))
    results.test_errors = {"by the training set's μ and σ": 0.02, "by their own, ten at a time": 0.05}
    return results


def test_every_claim_holds_on_good_results_and_can_fail() -> None:
    assert [claim.text for claim in claims(good()) if not claim.held] == []
    results = good()
    results.descents[WIDE, NORMAL] = Descent(0.001, 95.0, 2e4, [], torch.zeros(0))
    results.descents[ALIKE, RAW] = Descent(0.1, 11.0, 2e4, [], torch.zeros(0))
    results.variances[PRINTED] = torch.tensor([0.1, 10.0])
    results.second_moment = (1.0, 1.0)
    results.test_errors["by their own, ten at a time"] = 0.01
    assert all(claim.held is False for claim in claims(results))
