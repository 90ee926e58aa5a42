"""The experiment on exponentially weighted averages, run small; its claims fed with results they must not approve."""

import math
from dataclasses import replace

import pytest

from experiments.averages import NAME, WINDOWS, AveragesConfig, claims, main
from tests.experiments._outputs import check_outputs, events, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / NAME, main(AveragesConfig(quick=True, log_dir=folder))


def test_leaves_pictures_curves_and_reading(run):
    folder, results = run
    check_outputs(folder, results, variant="beta_0.98")
    assert {path.name for path in folder.glob("*.png")} == {"curves.png", "weights.png", "bias_correction.png"}
    curve = events(folder / "beta_0.9").Scalars("1 Weight of a day in the average (horizontal: days ago)/weight")
    assert [point.value for point in curve] == pytest.approx([0.1 * 0.9**k for k in range(101)], rel=1e-6)


@pytest.mark.parametrize("beta", WINDOWS)
def test_window_lag_and_noise_are_those_of_the_closed_forms(run, beta):
    _, results = run
    a = results.averages[beta]
    assert a.fall == pytest.approx(-1 / math.log(beta))
    assert a.inside == pytest.approx(1 - beta ** WINDOWS[beta])
    assert a.lag == pytest.approx(beta / (1 - beta), rel=1e-9)
    # 2,000 streams: the standard error of a variance is √(2/2000) = 3.2 % of it; four of them
    assert a.noise == pytest.approx((1 - beta) / (1 + beta), rel=0.13)
    # A filter 1/(1 − β e^{−iω}) delays a wave of frequency ω by its phase; the day is a whole number
    omega = 2 * math.pi / 365
    phase = math.atan2(beta * math.sin(omega), 1 - beta * math.cos(omega)) / omega
    assert a.delay == pytest.approx(phase, abs=1)
    assert a.settled == math.ceil(math.log(0.01 / 1.01) / math.log(beta))


def test_what_held_and_what_did_not(run):
    _, results = run
    assert [claim.held for claim in results.reading] == [True, True, False, True, True, True]


def test_every_claim_can_be_refuted(run):
    _, results = run

    def judged(words: str, beta: float, **wrong: object) -> bool | None:
        averages = {**results.averages, beta: replace(results.averages[beta], **wrong)}
        return outcome(claims(replace(results, averages=averages)), words)

    assert judged("averages over about 10", 0.98, fall=48.5) is False
    assert judged("0.9¹⁰", 0.9, weights=tuple(0.1 * 0.8**k for k in range(20))) is False
    assert judged("the smoother", 0.98, roughness=2.0) is False
    assert judged("the later", 0.98, delay=1) is False
    assert judged("Without bias correction", 0.9, errors=(1.0, 2.0)) is False
    assert outcome(claims(replace(results, second=(1.0, 1.01))), "0.0196") is False
    plain_mean = {beta: replace(a, noise=1 / WINDOWS[beta]) for beta, a in results.averages.items()}
    assert outcome(claims(replace(results, averages=plain_mean)), "like a plain mean") is True


def test_refuses_a_series_shorter_than_a_year():
    with pytest.raises(ValueError, match="days must be at least 365, got 100"):
        AveragesConfig(days=100)
