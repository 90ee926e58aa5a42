"""EarlyStopping, check_monotonic."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchnotes.training import EarlyStopping, check_monotonic


def _follow(stopping, values):
    model, weights = nn.Linear(1, 1), []
    for epoch, value in enumerate(values, start=1):
        model.weight.data.fill_(epoch)
        if stopping.update(value, model):
            break
    stopping.restore(model)
    weights = model.weight.item()
    return epoch, weights


def test_stops_after_the_least_cost_and_keeps_its_weights():
    assert _follow(EarlyStopping(patience=3), [5, 4, 3, 3.5, 4, 5, 1]) == (6, 3.0)
    assert _follow(EarlyStopping(patience=1), [5, 4, 4, 1]) == (3, 2.0)  # an equal cost is not a lower one
    assert _follow(EarlyStopping(patience=2, min_delta=0.5), [5, 4.8, 4.6, 1]) == (3, 1.0)
    assert _follow(EarlyStopping(patience=2, mode="max"), [0.1, 0.9, 0.8, 0.7]) == (4, 2.0)
    assert _follow(EarlyStopping(patience=2), [3.0, math.nan, math.nan, 1.0]) == (3, 1.0)
    assert _follow(EarlyStopping(patience=9), [3, 2, 1]) == (3, 3.0)


def test_resumes_with_the_best_weights():
    model, first = nn.Linear(1, 1), EarlyStopping(patience=2)
    model.weight.data.fill_(7.0)
    first.update(1.0, model)
    model.weight.data.fill_(8.0)
    first.update(2.0, model)
    second = EarlyStopping(patience=2)
    second.load_state_dict(first.state_dict())
    assert second.update(3.0, model)
    second.restore(model)
    assert model.weight.item() == 7.0


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (lambda: EarlyStopping(0), ValueError, "patience must be an integer of at least 1, got 0"),
        (lambda: EarlyStopping(min_delta=-1), ValueError, "min_delta must lie in"),
        (lambda: EarlyStopping(mode="low"), ValueError, "mode must be 'min' for a cost"),
        (
            lambda: EarlyStopping().update(torch.ones(1), nn.Identity()),
            TypeError,
            r"take it out of a tensor with \.item",
        ),
        (
            lambda: EarlyStopping().restore(nn.Identity()),
            ValueError,
            "there are no best weights before the first finite",
        ),
        (lambda: check_monotonic([1.0]), ValueError, "costs must hold at least two iterations, got 1"),
        (lambda: check_monotonic([1.0, 2.0], tolerance=-1), ValueError, "tolerance must lie in"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()


def test_monotonic_by_hand():
    report = check_monotonic([5.0, 4.0, 4.5, 4.4, 6.4, 1.0])
    assert not report.monotonic
    assert report.rises == (2, 4)
    assert report.largest_rise == pytest.approx(2.0)
    assert "rises 2 times, first at iteration 2, by at most 2:" in str(report)
    assert check_monotonic([1.0, 1.0 + 1e-8]).monotonic  # round-off
    assert check_monotonic(iter([3, 2, 2, 1])).monotonic
    bad = check_monotonic([3.0, 2.0, math.nan, 5.0])
    assert not bad.monotonic
    assert bad.first_nonfinite == 2
    assert "not finite from iteration 2" in str(bad)


@pytest.mark.parametrize(("keep", "rate", "falls"), [(1.0, 0.1, True), (0.7, 0.1, False), (1.0, 30.0, False)])
def test_full_batch_descent_is_monotonic_without_dropout_and_not_with_it(keep, rate, falls):
    torch.manual_seed(0)
    x = torch.randn(64, 4, dtype=torch.float64)
    y = x[:, :1].sin()
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(1 - keep), nn.Linear(16, 1)).double()
    optimizer, costs = torch.optim.SGD(model.parameters(), rate), []
    for _ in range(40):
        optimizer.zero_grad()
        cost = F.mse_loss(model(x), y)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert check_monotonic(costs).monotonic is falls
