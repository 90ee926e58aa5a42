"""The decays: the notes' numbers, closed form against steps, chaining, resuming, torch's twins, errors."""

import copy
import io
import math

import pytest
import torch
from torch.optim import lr_scheduler as torchs

from torchnotes.optim import lr_scheduler as ours

DECAYS = {
    "InverseTimeDecay": lambda o, **k: ours.InverseTimeDecay(o, 0.7, **k),
    "InverseSqrtDecay": lambda o, **k: ours.InverseSqrtDecay(o, 0.5, **k),
    "ExponentialDecay": lambda o, **k: ours.ExponentialDecay(o, 0.95, **k),
    "StaircaseDecay": lambda o, **k: ours.StaircaseDecay(o, 3, 0.5, **k),
    "ManualDecay": lambda o, **k: ours.ManualDecay(o, {2: 0.05, 5: 0.01}, **k),
}
decays = pytest.mark.parametrize("name", DECAYS)


def _optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=0.1)


def _walk(optimizer, scheduler, epochs):
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == rates[-1]
    return rates


# α₀ = 0.2 and the notes' formulas worked by hand
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: ours.InverseTimeDecay(o, 1.0), [0.2, 0.2 / 2, 0.2 / 3, 0.2 / 4, 0.2 / 5]),
        (lambda o: ours.InverseSqrtDecay(o, 0.5), [0.1, 0.1, 0.1 / math.sqrt(2), 0.1 / math.sqrt(3), 0.05]),
        (ours.ExponentialDecay, [0.2, 0.19, 0.1805, 0.171475, 0.16290125]),
        (lambda o: ours.StaircaseDecay(o, 2), [0.2, 0.2, 0.1, 0.1, 0.05]),
        (lambda o: ours.ManualDecay(o, {1: 0.1, 3: 0.01}), [0.2, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_the_notes_formulas(make, expected):
    optimizer = _optimizer(0.2)
    scheduler = make(optimizer)
    assert scheduler.curve(5) == pytest.approx(expected, rel=1e-15)
    walked = [rates[0] for rates in _walk(optimizer, scheduler, 4)]
    assert walked == pytest.approx(expected, rel=1e-14)


@decays
def test_steps_follow_the_closed_form_for_every_group(name):
    optimizer = _optimizer(0.1, 0.02)
    scheduler = DECAYS[name](optimizer)
    walked = _walk(optimizer, scheduler, 60)
    # 60 products of ratios: 60 roundings
    assert [rates[0] for rates in walked] == pytest.approx(scheduler.curve(61), rel=60 * 2.3e-16)
    for first, second in walked:
        assert second / first == pytest.approx(0.2, rel=1e-13)


@decays
def test_jumping_to_an_epoch_uses_the_closed_form(name):
    optimizer = _optimizer(0.1)
    scheduler = DECAYS[name](optimizer)
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(7)
    assert optimizer.param_groups[0]["lr"] == scheduler.curve(8)[7]


@decays
def test_chained_with_torchs_own_the_factors_multiply(name):
    optimizer = _optimizer(0.1)
    alone = DECAYS[name](_optimizer(0.1)).curve(13)
    both = torchs.ChainedScheduler([DECAYS[name](optimizer), torchs.ExponentialLR(optimizer, 0.9)])
    walked = [rates[0] for rates in _walk(optimizer, both, 12)]
    assert walked == pytest.approx([a * 0.9**t for t, a in enumerate(alone)], rel=1e-13)


@decays
def test_one_after_another(name):
    optimizer = _optimizer(0.1)
    warm = torchs.ConstantLR(optimizer, factor=0.5, total_iters=3)
    both = torchs.SequentialLR(optimizer, [warm, DECAYS[name](optimizer)], milestones=[3])
    walked = [rates[0] for rates in _walk(optimizer, both, 8)]
    assert walked[3:] == pytest.approx(DECAYS[name](_optimizer(0.1)).curve(6), rel=1e-13)


@decays
@pytest.mark.parametrize("at", [0, 1, 4])
def test_resumed_rates_are_bit_identical(name, at):
    whole = _optimizer(0.1, 0.02)
    expected = _walk(whole, DECAYS[name](whole), 10)
    first = _optimizer(0.1, 0.02)
    scheduler = DECAYS[name](first)
    _walk(first, scheduler, at)
    buffer = io.BytesIO()
    torch.save([first.state_dict(), scheduler.state_dict()], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    second = _optimizer(0.1, 0.02)
    resumed = DECAYS[name](second)
    second.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert _walk(second, resumed, 10 - at) == expected[at:]


@decays
def test_built_to_go_on_from_an_epoch(name):
    optimizer = _optimizer(0.1)
    expected = _walk(optimizer, DECAYS[name](optimizer), 9)
    second = _optimizer(0.1)
    scheduler = DECAYS[name](second)
    _walk(second, scheduler, 4)
    again = DECAYS[name](second, last_epoch=scheduler.last_epoch - 1)
    assert second.param_groups[0]["lr"] == expected[4][0]
    assert _walk(second, again, 5) == expected[4:]


@pytest.mark.parametrize(
    ("mine", "twin"),
    [
        (lambda o: ours.ExponentialDecay(o, 0.9), lambda o: torchs.ExponentialLR(o, 0.9)),
        (lambda o: ours.StaircaseDecay(o, 4, 0.3), lambda o: torchs.StepLR(o, 4, 0.3)),
        (lambda o: ours.InverseTimeDecay(o, 0.5), lambda o: torchs.LambdaLR(o, lambda t: 1 / (1 + 0.5 * t))),
        (ours.InverseSqrtDecay, lambda o: torchs.LambdaLR(o, lambda t: max(t, 1) ** -0.5)),
        (
            lambda o: ours.ManualDecay(o, {3: 0.03, 6: 0.003}),
            lambda o: torchs.LambdaLR(o, lambda t: 1 if t < 3 else 0.3 if t < 6 else 0.03),
        ),
    ],
)
def test_torchs_twins_give_the_same_rates(mine, twin):
    rates = []
    for make in (mine, twin):
        optimizer = _optimizer(0.1)
        rates.append([r[0] for r in _walk(optimizer, make(optimizer), 20)])
    assert rates[0] == pytest.approx(rates[1], rel=1e-13)


def test_rates_too_small_to_divide_by_go_on_shrinking():
    optimizer = _optimizer(0.1)
    scheduler = ours.ExponentialDecay(optimizer, 1e-200)
    assert [r[0] for r in _walk(optimizer, scheduler, 3)] == pytest.approx([0.1, 1e-201, 0.0, 0.0], rel=1e-14, abs=0)


@decays
def test_a_rate_in_a_tensor_is_changed_in_place(name):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1, dtype=torch.float64))
    rate = optimizer.param_groups[0]["lr"]
    scheduler = DECAYS[name](optimizer)
    _walk(optimizer, scheduler, 4)
    assert optimizer.param_groups[0]["lr"] is rate  # a captured graph reads this very tensor
    assert rate.item() == pytest.approx(scheduler.curve(5)[4], rel=1e-12)


def test_manual_decay_while_watching():
    optimizer = _optimizer(0.1, 0.02)
    scheduler = ours.ManualDecay(optimizer, {4: 0.001})
    _walk(optimizer, scheduler, 2)
    scheduler.set_rate(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    twin_optimizer = _optimizer(0.1, 0.02)
    twin = ours.ManualDecay(twin_optimizer)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert [r[0] for r in _walk(twin_optimizer, twin, 3)] == pytest.approx([0.05, 0.05, 0.001, 0.001])


def test_manual_rate_in_a_tensor_is_set_in_place():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1, dtype=torch.float64))
    rate = optimizer.param_groups[0]["lr"]
    scheduler = ours.ManualDecay(optimizer)
    scheduler.set_rate(0.01)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01)
    assert scheduler.get_last_lr()[0] is not rate


@pytest.mark.parametrize(
    ("make", "error", "wording"),
    [
        (lambda o: ours.InverseTimeDecay(o, -1), ValueError, r"decay_rate must lie in \[0, inf\), got -1"),
        (lambda o: ours.InverseSqrtDecay(o, 0), ValueError, r"k must lie in \(0, inf\), got 0"),
        (lambda o: ours.ExponentialDecay(o, 1.5), ValueError, r"gamma must lie in \(0, 1\], got 1\.5"),
        (lambda o: ours.ExponentialDecay(o, "fast"), TypeError, "gamma must be a number"),
        (lambda o: ours.StaircaseDecay(o, 0), ValueError, "step_size must be an integer of at least 1, got 0"),
        (lambda o: ours.StaircaseDecay(o, 2, 0.0), ValueError, r"gamma must lie in \(0, 1\]"),
        (lambda o: ours.ManualDecay(o, {-1: 0.1}), ValueError, "rates must map epochs from 0 to rates, got int -1"),
        (lambda o: ours.ManualDecay(o, {1: 0.0}), ValueError, r"rates\[1\] must lie in \(0, inf\)"),
        (lambda o: ours.ManualDecay(o).set_rate(-1.0), ValueError, r"rates\[0\] must lie in"),
        (lambda o: ours.ManualDecay(None, {1: 0.1}), TypeError, "is not an Optimizer"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(make, error, wording):
    with pytest.raises(error, match=wording):
        make(_optimizer(0.1))


def test_manual_decay_needs_a_positive_first_rate():
    optimizer = _optimizer(0.0)
    with pytest.raises(ValueError, match=r"first learning rate must be positive to be decayed, got 0\.0"):
        ours.ManualDecay(optimizer, {0: 0.1})
