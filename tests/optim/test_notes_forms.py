"""The forms the notes print, against loops written from their formulas, and the conversions between forms."""

import math

import pytest
import torch
from torch import nn

from tests.optim._helpers import assert_same, run, small_parameters
from torchnotes.optim import Adam, GradientDescent, Momentum, RMSprop

GRADIENTS = [0.5, -2.0, 3.0, 0.25, -1.0, 4.0]


def _path(make, gradients=GRADIENTS, start=1.0):
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, path = make([w]), []
    for g in gradients:
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        path.append(w.item())
    return path


def test_gradient_descent_f1():
    w, path = 1.0, []
    for g in GRADIENTS:
        w -= 0.1 * g
        path.append(w)
    assert _path(lambda p: GradientDescent(p, 0.1)) == pytest.approx(path, rel=1e-15)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_f3_is_an_average(nesterov):
    beta, alpha = 0.9, 0.1
    w, v, path = 1.0, 0.0, []
    for g in GRADIENTS:
        v = beta * v + (1 - beta) * g
        w -= alpha * ((beta * v + (1 - beta) * g) if nesterov else v)
        path.append(w)
    ours = _path(lambda p: Momentum(p, alpha, beta, nesterov=nesterov))
    assert ours == pytest.approx(path, rel=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_forms_convert_by_one_minus_beta(nesterov):
    # G16: the sum is larger by 1/(1 − β), so the average's α is (1 − β) of it in the sum
    beta, alpha = 0.9, 0.1
    params, others, torchs = small_parameters(), small_parameters(), small_parameters()
    run(lambda p: Momentum(p, alpha, beta, nesterov=nesterov), params)
    run(lambda p: Momentum(p, alpha * (1 - beta), beta, nesterov=nesterov, form="sum"), others)
    run(lambda p: torch.optim.SGD(p, alpha * (1 - beta), beta, nesterov=nesterov), torchs)
    assert_same(params, others, rtol=1e-12, atol=1e-13)
    assert_same(params, torchs, rtol=1e-12, atol=1e-13)


def test_momentum_forms_differ_at_the_same_rate():
    average = _path(lambda p: Momentum(p, 0.1, 0.9), [1.0] * 200)
    total = _path(lambda p: Momentum(p, 0.1, 0.9, form="sum"), [1.0] * 200)
    # on a constant gradient the steps end at α and α/(1 − β)
    assert average[-2] - average[-1] == pytest.approx(0.1, rel=1e-8)
    assert total[-2] - total[-1] == pytest.approx(1.0, rel=1e-8)


def test_dampening_equal_to_beta_is_the_notes_form_but_for_its_first_step():
    ours = _path(lambda p: Momentum(p, 0.1, 0.9))
    damped = _path(lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.9))
    assert ours[0] == pytest.approx(1 - 0.1 * 0.1 * GRADIENTS[0])
    assert damped[0] == pytest.approx(1 - 0.1 * GRADIENTS[0])


@pytest.mark.parametrize("form", ["outside", "inside"])
def test_rmsprop_f4(form):
    beta, alpha, eps = 0.9, 0.1, 1e-2  # an ε large enough to tell the forms apart
    w, s, path = 1.0, 0.0, []
    for g in GRADIENTS:
        s = beta * s + (1 - beta) * g * g
        w -= alpha * g / (math.sqrt(s + eps) if form == "inside" else math.sqrt(s) + eps)
        path.append(w)
    ours = _path(lambda p: RMSprop(p, alpha, beta, eps, eps_form=form))
    assert ours == pytest.approx(path, rel=1e-14)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("form", ["outside", "inside"])
def test_adam_f5(form, capturable):
    beta1, beta2, alpha, eps = 0.9, 0.999, 0.1, 1e-2
    w, v, s, path = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        v = beta1 * v + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g * g
        v_hat, s_hat = v / (1 - beta1**t), s / (1 - beta2**t)
        w -= alpha * v_hat / (math.sqrt(s_hat + eps) if form == "inside" else math.sqrt(s_hat) + eps)
        path.append(w)
    ours = _path(lambda p: Adam(p, alpha, (beta1, beta2), eps, eps_form=form, capturable=capturable))
    assert ours == pytest.approx(path, rel=1e-6 if capturable else 1e-13)  # float32 t on the device


def test_adam_corrects_s_with_beta2():
    # G6: corrected with β₁, the first step would be α √(1 − β₁)/√(1 − β₂) = 10 α instead of α
    step = 1.0 - _path(lambda p: Adam(p, 0.1), [3.0])[0]
    assert step == pytest.approx(0.1, rel=1e-8)
    misprinted = 0.1 * 3.0 / math.sqrt(0.001 * 9.0 / (1 - 0.9))
    assert misprinted == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("rule", [RMSprop, Adam])
def test_epsilon_forms_agree_for_large_gradients_and_part_for_small_ones(rule):
    # G7: s ≫ ε makes no difference; at g = 1e-6, √(s + 1e-8) ≈ 1e-4 stops the step and √s + 1e-8 does not
    def step(form, g):
        return abs(_path(lambda p: rule(p, 0.1, eps=1e-8, eps_form=form), [g], start=0.0)[0])

    assert step("inside", 10.0) == pytest.approx(step("outside", 10.0), rel=1e-6)
    assert step("outside", 1e-6) > 50 * step("inside", 1e-6)
    # for a zero gradient nothing moves in either
    assert step("inside", 0.0) == step("outside", 0.0) == 0.0


@pytest.mark.parametrize("rule", [GradientDescent, Momentum, RMSprop, Adam])
def test_every_parameter_follows_the_same_rule(rule):
    # G13: w and b with the same gradient take the same step
    w, b = nn.Parameter(torch.ones(2, 1)), nn.Parameter(torch.ones(2))
    optimizer = rule([w, b], lr=0.1)
    for g in GRADIENTS:
        w.grad, b.grad = torch.full((2, 1), g), torch.full((2,), g)
        optimizer.step()
    assert torch.equal(w.data.flatten(), b.data)


@pytest.mark.parametrize("rule", [GradientDescent, Momentum, RMSprop, Adam])
def test_weight_decay_is_the_gradient_of_the_notes_penalty(rule):
    m, lam = 50, 3.0
    paths = []
    for penalised in (True, False):
        w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = rule([w], lr=0.05, weight_decay=0.0 if penalised else lam / m)
        for _ in range(10):
            optimizer.zero_grad()
            cost = (w - 0.5).pow(4).sum()
            if penalised:
                cost = cost + lam / (2 * m) * w.square().sum()
            cost.backward()
            optimizer.step()
        paths.append(w.data)
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "wording"),
    [
        (lambda p: Momentum(p, 0.1, 1.0), ValueError, r"momentum must lie in \[0, 1\), got 1\.0"),
        (lambda p: Momentum(p, 0.1, form="mean"), ValueError, r"form must be 'average' .*, got 'mean'"),
        (lambda p: Momentum(p, 0.1, dampening=0.5), ValueError, "dampening must be 0 with form='average'"),
        (
            lambda p: Momentum(p, 0.1, dampening=0.5, form="sum", nesterov=True),
            ValueError,
            "dampening must be 0 with form='average' and with nesterov",
        ),
        (lambda p: Momentum(p, 0.1, nesterov=1), TypeError, "nesterov must be True or False"),
        (lambda p: RMSprop(p, 0.1, -0.1), ValueError, r"alpha must lie in \[0, 1\)"),
        (lambda p: RMSprop(p, 0.1, eps=-1e-8), ValueError, r"eps must lie in \[0, inf\)"),
        (lambda p: RMSprop(p, 0.1, eps_form="under"), ValueError, "eps_form must be 'outside' for"),
        (lambda p: RMSprop(p, 0.1, momentum=-1), ValueError, "momentum must lie in"),
        (lambda p: RMSprop(p, 0.1, centered=None), TypeError, "centered must be True or False"),
        (lambda p: Adam(p, 0.1, (0.9, 1.0)), ValueError, r"betas\[1\] must lie in \[0, 1\), got 1\.0"),
        (lambda p: Adam(p, 0.1, 0.9), ValueError, "betas must be a pair"),
        (lambda p: Adam(p, 0.1, (torch.ones(2), 0.9)), ValueError, "tensors of one element"),
        (lambda p: Adam(p, 0.1, amsgrad=1), TypeError, "amsgrad must be True or False"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(make, error, wording):
    with pytest.raises(error, match=wording):
        make([nn.Parameter(torch.zeros(1))])


def test_states_of_other_rules_are_refused():
    w = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match="load the state into Momentum"):
        GradientDescent(w).load_state_dict(torch.optim.SGD(w, 0.1, 0.9).state_dict())
    with pytest.raises(ValueError, match="load the state into AdamW"):
        Adam(w).load_state_dict(torch.optim.AdamW(w).state_dict())
    momentum = Momentum(w)
    momentum.load_state_dict(torch.optim.SGD(w, 0.1, 0.9).state_dict())
    assert momentum.param_groups[0]["form"] == "sum"
