"""ExponentialAverage: the notes' numbers, the weights in closed form, windows, resuming, errors."""

import math

import pytest
import torch

from torchnotes.optim import ExponentialAverage


def test_the_notes_numbers():
    # β = 0.98: v₁ = 0.02 θ₁, v₂ = 0.0196 θ₁ + 0.02 θ₂
    average = ExponentialAverage(0.98, bias_correction=False)
    assert average.update(40.0) == pytest.approx(0.02 * 40.0, rel=1e-13)
    assert average.update(49.0) == pytest.approx(0.0196 * 40.0 + 0.02 * 49.0, rel=1e-13)
    corrected = ExponentialAverage(0.98)
    assert corrected.update(40.0) == pytest.approx(40.0, rel=1e-13)
    # (0.0196 θ₁ + 0.02 θ₂)/0.0396
    assert corrected.update(49.0) == pytest.approx((0.0196 * 40.0 + 0.02 * 49.0) / 0.0396, rel=1e-13)


@pytest.mark.parametrize(("beta", "window"), [(0.9, 10), (0.98, 50), (0.5, 2), (0.0, 1)])
def test_windows(beta, window):
    assert ExponentialAverage(beta).window == pytest.approx(window, rel=1e-12)
    assert ExponentialAverage.over(window).beta == pytest.approx(beta, abs=1e-15)


def test_a_value_falls_to_a_third_after_the_window():
    # (1 − ε)^{1/ε} ≈ 1/e: 0.9¹⁰ = 0.3487, 0.98⁵⁰ = 0.3642
    for beta, window in ((0.9, 10), (0.98, 50)):
        average = ExponentialAverage(beta, bias_correction=False)
        start = average.update(1.0)
        for _ in range(window):
            end = average.update(0.0)
        assert end / start == pytest.approx(beta**window, rel=1e-12)
        assert end / start == pytest.approx(math.exp(-1), abs=0.02)


@pytest.mark.parametrize("tensors", [False, True])
def test_closed_form_over_a_stream(tensors):
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    values = list(stream) if tensors else stream[:, 0].tolist()
    average, plain = ExponentialAverage(0.8), ExponentialAverage(0.8, bias_correction=False)
    smooth, raw = average.smooth(values), plain.smooth(values)
    for t in range(1, 31):
        weights = 0.2 * 0.8 ** torch.arange(t - 1, -1, -1, dtype=torch.float64)
        v = weights @ stream[:t]
        v, c = (v, v / weights.sum()) if tensors else (v[0].item(), (v / weights.sum())[0].item())
        torch.testing.assert_close(raw[t - 1], v, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(smooth[t - 1], c, rtol=1e-12, atol=1e-14)


def test_without_correction_the_start_is_far_too_low():
    assert ExponentialAverage(0.98, bias_correction=False).smooth([40.0] * 3)[-1] < 3.0
    assert ExponentialAverage(0.98).smooth([40.0] * 3) == pytest.approx([40.0] * 3, rel=1e-12)


def test_a_longer_window_is_smoother():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, generator=generator, dtype=torch.float64).tolist()
    spread = [torch.tensor(ExponentialAverage(beta).smooth(noise)[500:]).std().item() for beta in (0.5, 0.9, 0.98)]
    # the variance of the average of white noise is (1 − β)/(1 + β); 1500 correlated values fix it to some 15 %
    for beta, found in zip((0.5, 0.9, 0.98), spread, strict=True):
        assert found == pytest.approx(math.sqrt((1 - beta) / (1 + beta)), rel=0.25)


def test_tensors_are_left_alone_and_no_graph_is_kept():
    theta = torch.ones(3, requires_grad=True)
    average = ExponentialAverage(0.9)
    value = average.update(theta)
    average.update(theta * 3)
    assert torch.equal(value, torch.ones(3))
    assert not average.value.requires_grad
    average.value.zero_()
    assert average.value.sum() > 0


@pytest.mark.parametrize("value", [2.5, torch.tensor([1.0, 2.0])])
def test_resumes(value):
    average = ExponentialAverage(0.9, bias_correction=False)
    average.update(value)
    state = average.state_dict()
    average.update(value * 3)
    second = ExponentialAverage()
    second.load_state_dict(state)
    second.update(value * 3)
    torch.testing.assert_close(second.value, average.value, rtol=0, atol=0)
    fresh = ExponentialAverage(0.5)
    fresh.load_state_dict(ExponentialAverage(0.7).state_dict())
    assert fresh.beta == 0.7
    assert fresh.count == 0


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (lambda: ExponentialAverage(1.0), ValueError, r"beta must lie in \[0, 1\), got 1\.0; the average has a window"),
        (lambda: ExponentialAverage(-0.1), ValueError, r"beta must lie in \[0, 1\)"),
        (lambda: ExponentialAverage.over(0.5), ValueError, r"window must lie in \[1, inf\)"),
        (lambda: ExponentialAverage().value, ValueError, "an average of no values has no value"),
        (lambda: ExponentialAverage().update("warm"), TypeError, "theta must be a number or a floating-point tensor"),
        (lambda: ExponentialAverage().update(torch.ones(2, dtype=torch.long)), TypeError, "got a tensor of shape"),
        (lambda: ExponentialAverage().smooth([1.0, torch.ones(1)]), TypeError, "theta must be a number as before"),
        (lambda: ExponentialAverage().smooth([torch.ones(1), 1.0]), TypeError, "theta must be a tensor as before"),
        (
            lambda: ExponentialAverage().smooth([torch.ones(2), torch.ones(2, 1)]),
            ValueError,
            r"theta must have the shape of the values before, \(2,\), got \(2, 1\)",
        ),
        (lambda: ExponentialAverage().load_state_dict({"beta": 0.9}), ValueError, "one without bias_correction, count"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()
