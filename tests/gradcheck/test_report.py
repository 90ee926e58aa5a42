"""The report as a table, as Markdown and as JSON; re-checking; the word against checking at every step."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data, faulty_net, net, seeded
from torchnotes.gradcheck import GradcheckInTrainingWarning, assert_gradients, check_gradients, recheck_after
from torchnotes.gradcheck._patterns import describe_pattern
from torchnotes.gradcheck._progress import Progress

RIGHT = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.25, -1.5], [2.5, -0.75, 4.0]], dtype=torch.float64)
THETA = torch.tensor([[0.3, 0.1, -0.2], [0.7, -0.4, 0.9], [-0.6, 0.8, 0.2]], dtype=torch.float64)


def four_times(gx, gw, gb, w):
    return gx, gw, 4 * gb


@pytest.fixture(scope="module")
def wrong():
    x, y = data()
    return check_gradients(faulty_net(four_times), x, y, loss=F.cross_entropy)


def test_the_table_fits_100_columns_even_with_long_names():
    inner = net(sizes=(6, 5, 3))
    model = nn.Sequential()
    model.add_module("a_module_with_quite_a_long_name_for_a_layer_of_a_network_and_then_some_more", inner)
    x, y = data()
    lines = str(check_gradients(model, x, y, loss=F.cross_entropy)).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("CORRECT: ratio ")


def test_the_table_says_what_is_wrong_where_and_by_how_much(wrong):
    text = str(wrong)
    assert max(map(len, text.splitlines())) <= 100
    assert "2.bias: 4 × too large" in text
    assert "the fault is inside 2" in " ".join(text.split())
    assert "2.bias[" in text


def test_json_holds_the_same(wrong):
    plain = json.loads(wrong.to_json())
    assert plain["verdict"] == "wrong"
    assert plain["culprits"] == ["2"]
    assert plain["by_parameter"]["2.bias"]["pattern"] == "4 × too large"
    assert plain["ratio"] == pytest.approx(wrong.ratio)


def test_json_has_no_nan():
    x, y = data()
    report = check_gradients(faulty_net(lambda gx, gw, gb, w: (gx, gw, gb * float("nan"))), x, y, loss=F.cross_entropy)
    assert report.verdict == "wrong"
    assert json.loads(report.to_json(), parse_constant=pytest.fail)["ratio"] is None


def test_markdown_is_a_table(wrong):
    lines = wrong.to_markdown().splitlines()
    assert lines[0].startswith("**WRONG")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(wrong.by_parameter)
    assert len({line.count("|") for line in table}) == 1


def test_worst_entries_come_in_order(wrong):
    errors = [e.error for e in wrong.worst(4)]
    assert errors == sorted(errors, reverse=True)
    assert all(e.parameter == "2.bias" for e in wrong.worst(4))
    assert all(e.exact == pytest.approx(4 * e.approx, rel=1e-6) for e in wrong.worst(4))


@pytest.mark.parametrize(
    ("exact", "says"),
    [
        (4 * RIGHT, "4 × too large"),
        (RIGHT / 3, "3 × too small"),
        (-RIGHT, "sign: the negative of the right gradient"),
        (-2 * RIGHT, "with the wrong sign and 2 × too large"),
        (RIGHT / 2, "uniform ½"),
        (8 * RIGHT, "8 × too large, and 8 is the number of samples: a sum where a mean is meant"),
        (RIGHT / 8, "1/8 of the right gradient, and 8 is the number of samples: the mean taken twice"),
        (RIGHT.T, "transposed"),
        (RIGHT.flip(1), "reversed along axis 1"),
        (RIGHT.reshape(-1)[[3, 1, 2, 0, 4, 5, 6, 7, 8]].reshape(3, 3), "the right values in the wrong order"),
        (RIGHT.abs(), "absolute value"),
        (RIGHT.clamp_min(0), "negative entries are set to 0"),
        (RIGHT.clamp(-2, 2), "clipped to ±2"),
        (RIGHT**2, "squared"),
        (torch.zeros(3, 3), "missing"),
        (torch.full((3, 3), float(RIGHT.mean())), "averaged"),
        (torch.full((3, 3), float(RIGHT.sum())), "summed"),
        (RIGHT - 0.7 * THETA, "penalty missing: what is left out is 0.7 × the L2 penalty"),
        (RIGHT - 0.7 * THETA.sign(), "penalty missing: what is left out is 0.7 × the L1 penalty"),
        (torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), "no simple pattern: cosine"),
    ],
)
def test_patterns(exact, says):
    assert describe_pattern(exact.double(), RIGHT, THETA, sizes={8: "the number of samples"}).startswith(says)


@pytest.mark.parametrize(
    ("factor", "says"),
    [(0.0, "penalty missing: exactly"), (2.0, "penalty counted twice"), (0.5, "penalty wrong: 0.5 × its gradient")],
)
def test_patterns_of_a_known_penalty(factor, says):
    penalty = 0.2 * THETA
    assert describe_pattern(RIGHT + (factor - 1) * penalty, RIGHT, THETA, penalty=penalty).startswith(says)


def test_recheck_checks_first_and_after_the_steps_asked_for():
    model, (x, y) = net(), data()
    recheck = recheck_after(3, 5)
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            made.append(recheck(model, x, y, loss=F.cross_entropy, modules=False) is not None)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.2)
    assert made == [True, False, False, True, False, True, False, False]
    assert list(recheck.reports) == [0, 3, 5]
    assert {r.verdict for r in recheck.reports.values()} == {"correct"}


class GrowsWrong(torch.autograd.Function):
    """Right while x is small: the notes' reason for checking again after training."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = 1 - torch.tanh(x) ** 2
        return g * torch.where(x.abs() < 1.0, slope, 0.0)


def test_a_fault_that_shows_only_when_weights_have_grown():
    class Layer(nn.Linear):
        def forward(self, x):
            return GrowsWrong.apply(super().forward(x))

    model = seeded(nn.Sequential(Layer(6, 3).double()), scale=0.05)
    x, y = data()
    recheck = recheck_after(1)
    first = recheck(model, x, y, loss=F.cross_entropy)
    with torch.no_grad():
        model[0].weight.mul_(40)
    second = recheck(model, x, y, loss=F.cross_entropy)
    assert first.verdict == "correct"
    assert second.verdict == "wrong"


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [((), ValueError, "steps must be positive"), ((0,), ValueError, "positive"), ((1.5,), TypeError, "whole numbers")],
)
def test_recheck_refuses_in_words(steps, error, words):
    with pytest.raises(error, match=words):
        recheck_after(*steps)


def test_checking_in_every_step_of_training_is_warned_of_once():
    model, (x, y) = net(sizes=(6, 3)), data()

    def train():
        for _ in range(8):
            assert_gradients(model, x, y, loss=F.cross_entropy, modules=False)
            with torch.no_grad():
                model[0].weight.mul_(1.01)

    with pytest.warns(GradcheckInTrainingWarning, match=r"4 times.*no part of training.*recheck_after") as caught:
        train()
    assert len(caught) == 1


def test_checking_one_state_many_times_is_not_training():
    model, (x, y) = net(sizes=(6, 3)), data()
    for _ in range(6):  # any warning is an error in this suite
        check_gradients(model, x, y, loss=F.cross_entropy, modules=False)


def test_progress_shows_after_two_seconds_and_only_where_wanted(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("torchnotes.gradcheck._progress.time.monotonic", lambda: now[0])
    for show, seen in ((True, True), (False, False), (None, False)):
        display = Progress(100, show)
        now[0] += 1.0
        display.advance(10)
        assert display._bar is None
        now[0] += 1.5
        display.advance(10)
        display.advance(10)
        display.close()
        assert ("gradient check" in capsys.readouterr().err) is seen


@pytest.mark.parametrize(("method", "title"), [("exact", "modules' own backwards"), ("projected", "gradient check")])
def test_every_part_of_a_check_shows_progress(monkeypatch, capsys, method, title):
    """Where every look at the clock takes a second, each part comes to show its bar, and an estimate with it."""
    now = iter(range(100_000))
    monkeypatch.setattr("torchnotes.gradcheck._progress.time.monotonic", lambda: float(next(now)))
    x, y = data()
    check_gradients(net(), x, y, loss=F.cross_entropy, method=method, progress=True)
    assert title in capsys.readouterr().err
