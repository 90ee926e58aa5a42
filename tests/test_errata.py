"""The notes' errata (SPEC G): the printed form fails the notes' own claim, the right form meets it."""

import math

import numpy as np
import pytest
import torch

from torchnotes import init, nn, ops
from torchnotes.data import InputNormalizer
from torchnotes.gradcheck import check_gradients, gradient_ratio, numerical_gradient
from torchnotes.optim import Adam, GradientDescent, Momentum, RMSprop


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rms(x):
    return x.square().mean().sqrt().item()


def test_g1_dividing_by_the_variance_does_not_give_unit_variance():
    x = 3.0 + 5.0 * normal(4000, 1)
    centred = x - x.mean(0)
    variance = centred.square().mean(0)
    printed = centred / variance
    torch.testing.assert_close(printed.var(unbiased=False).item(), (1 / variance).item())  # 1/25, not 1
    right = InputNormalizer(1).double().fit(x)(x)
    assert right.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-12)


def signal_after(depth, width, std, activation):
    x = normal(256, width)
    for layer in range(depth):
        x = activation(x @ (normal(width, width, seed=layer + 1) * std).T)
    return rms(x)


def test_g2_a_root_too_many_does_not_keep_the_scale():
    width = 256
    identity = lambda z: z  # noqa: E731
    # √√(1/256) = 1/4 is four times √(1/256): each linear layer multiplies the scale by √256/4 = 4.
    printed = signal_after(4, width, math.sqrt(math.sqrt(1 / width)), identity)
    assert printed == pytest.approx(4.0**4, rel=0.15)
    weight = init.lecun_normal_(
        torch.empty(1024, width, dtype=torch.float64), generator=torch.Generator().manual_seed(0)
    )
    # The sample variance of N normal numbers has relative standard deviation √(2/N): 0.28 % for 1024·256.
    assert weight.var().item() == pytest.approx(1 / width, rel=0.012)


def test_g3_weights_equal_to_one_over_n_are_symmetric():
    weight = torch.full((64, 32), 1 / 32, dtype=torch.float64, requires_grad=True)
    hidden = torch.tanh(normal(16, 32) @ weight.T)
    hidden.square().sum().backward()
    assert hidden.std(dim=1).max() < 1e-15  # every unit computes the same
    assert (weight.grad - weight.grad[0]).abs().max() < 1e-14  # and learns the same: for ever
    assert weight.var().item() == 0  # where the formula that follows asks for a variance of 1/n


def test_g4_two_over_root_n_has_variance_four_over_n():
    n = 400
    draw = normal(1000, n)
    assert (draw * 2 / np.sqrt(n)).var().item() == pytest.approx(4 / n, rel=0.01)
    assert (draw / np.sqrt(n)).var().item() == pytest.approx(1 / n, rel=0.01)
    weight = init.he_normal_(torch.empty(1000, n, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    assert weight.var().item() == pytest.approx(2 / n, rel=0.01)


def test_g5_two_over_n_as_a_standard_deviation_vanishes():
    width, depth = 1024, 8
    # The second moment per layer is n · std² / 2: 1 with std² = 2/n, but 2/n with std = 2/n, so rms × 0.044.
    # At this width and depth log(rms) scatters by √(5 · 8/1024)/2 = 0.1 from draw to draw.
    assert math.log(signal_after(depth, width, math.sqrt(2 / width), torch.relu)) == pytest.approx(0, abs=0.4)
    assert math.log(signal_after(depth, width, 2 / width, torch.relu)) / depth == pytest.approx(
        math.log(0.0442), abs=0.05
    )


def one_step(optimizer, gradient, **settings):
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    optimiser = optimizer([parameter], **settings)
    parameter.grad = gradient.clone()
    optimiser.step()
    return -parameter.detach()


def test_g6_correcting_s_with_beta1_breaks_the_first_step():
    gradient = torch.tensor([3.0, -0.02], dtype=torch.float64)
    step = one_step(Adam, gradient, lr=0.1)
    torch.testing.assert_close(step, 0.1 * gradient.sign(), rtol=0, atol=1e-7)
    beta1, beta2 = 0.9, 0.999
    v, s = (1 - beta1) * gradient, (1 - beta2) * gradient**2
    printed = 0.1 * (v / (1 - beta1)) / ((s / (1 - beta1)).sqrt() + 1e-8)
    torch.testing.assert_close(printed, step * 10, rtol=1e-4, atol=0)  # √(0.1/0.001) = 10 times too long


@pytest.mark.parametrize(
    ("ours", "twin", "settings"),
    [(Adam, torch.optim.Adam, {}), (RMSprop, torch.optim.RMSprop, {"alpha": 0.999})],
)
def test_g7_both_places_of_epsilon_are_offered(ours, twin, settings):
    gradient = torch.tensor([1e-3, 1e-9], dtype=torch.float64)  # the second lies below ε: there the forms differ
    default = one_step(ours, gradient, lr=0.1, **settings)
    torch.testing.assert_close(default, one_step(twin, gradient, lr=0.1, **settings), rtol=1e-12, atol=0)
    inside = one_step(ours, gradient, lr=0.1, eps_form="inside", **settings)
    # After one step s = (1 − β₂) dw² for RMSprop and ŝ = dw² for Adam.
    s = gradient**2 * (1 if ours is Adam else 0.001)
    torch.testing.assert_close(inside, 0.1 * gradient / (s + 1e-8).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(default, 0.1 * gradient / (s.sqrt() + 1e-8), rtol=1e-12, atol=0)
    assert default[1] > 100 * inside[1]  # √ε = 1e-4, not ε, is what the notes' form compares the gradient with


def test_g8_tan_is_not_tanh():
    z = torch.tensor([0.5, 1.5, 1.6], dtype=torch.float64)
    assert torch.tan(z).abs().max() > 10  # unbounded, and jumps from +14 to -34 between 1.5 and 1.6
    assert ops.tanh(z).abs().max() < 1
    printed_slope = 1 - torch.tan(z) ** 2  # the notes' 1 − a², if a were tan z: the true slope is 1 + a²
    assert gradient_ratio(printed_slope, 1 / torch.cos(z) ** 2) > 0.9
    assert gradient_ratio(1 - ops.tanh(z) ** 2, 1 / torch.cosh(z) ** 2) < 1e-15


def test_g8_the_first_layer_is_layer_one():
    # W^{[l]} has shape (n_l, n_{l-1}): the first weight maps the 20 inputs, layer 0, to the 7 units of layer 1.
    weights = [p for name, p in nn.MLP([20, 7, 5, 1]).named_parameters() if name.endswith("weight")]
    assert [tuple(w.shape) for w in weights] == [(7, 20), (5, 7), (1, 5)]


def slope(function, z):
    z = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(z), z)[0].item()


def test_g9_tanh_is_not_always_better():
    assert slope(ops.tanh, 0.0) == 1.0  # four times the sigmoid's slope in the middle
    assert slope(ops.sigmoid, 0.0) == 0.25
    assert slope(ops.tanh, 5.0) < 0.05 * slope(ops.sigmoid, 5.0)  # and a twentieth and less of it at the ends


def test_g10_one_over_root_n_is_one_formula():
    n = np.arange(1, 1000)
    np.testing.assert_allclose(1 / np.sqrt(n), np.sqrt(1 / n), rtol=4e-16)  # alike but for the last rounding


def test_g11_relu_has_slope_zero_at_zero():
    assert slope(ops.relu, 0.0) == 0.0
    zero = torch.zeros(1, dtype=torch.float64)
    across = numerical_gradient(lambda z: ops.relu(z).sum(), zero, eps=1e-7)
    assert across.item() == pytest.approx(0.5)  # what the notes' ratio would hold against the right gradient
    assert check_gradients(ReluOfParameter(), torch.ones(1, dtype=torch.float64)).verdict == "correct"


class ReluOfParameter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))

    def forward(self, x):
        return (ops.relu(self.theta) * x).sum()


def test_g12_a_correct_gradient_can_exceed_the_notes_threshold():
    # A cost that is large beside its gradients: J ≈ 1e3, whose last digit is 1e-13, so that ε = 1e-7 leaves
    # 1e-13/2e-7 ≈ 1e-6 of noise on every entry of a gradient whose entries are about 1.
    model = torch.nn.Linear(5, 1, dtype=torch.float64)
    x = normal(50, 5)

    def loss(output):
        return output.square().mean() + 1e3

    def cost(theta):
        return loss(x @ theta + model.bias.detach())

    theta = model.weight.detach()[0].unsqueeze(1).clone()
    exact = torch.func.grad(cost)(theta)
    assert gradient_ratio(numerical_gradient(cost, theta, eps=1e-7), exact) > 1e-7
    assert gradient_ratio(numerical_gradient(cost, theta, eps=1e-3), exact) < 1e-8
    assert check_gradients(model, x, loss=loss).verdict == "correct"


@pytest.mark.parametrize("optimizer", [GradientDescent, Momentum, RMSprop, Adam])
def test_g13_every_parameter_has_the_same_update(optimizer):
    weight, bias = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimiser = optimizer([weight, bias], lr=0.1)
    for step in range(5):
        weight.grad = normal(3, seed=step)
        bias.grad = weight.grad.clone()
        optimiser.step()
    assert torch.equal(weight, bias)
    assert not torch.equal(weight, torch.ones_like(weight))


def test_g13_the_mean_over_samples_divides_every_gradient():
    model, x, y = torch.nn.Linear(4, 1, dtype=torch.float64), normal(10, 4), torch.ones(10, 1, dtype=torch.float64)
    ops.binary_cross_entropy_with_logits(model(x), y).backward()
    dz = torch.sigmoid(model(x)) - y
    torch.testing.assert_close(model.weight.grad, dz.T @ x / 10)
    torch.testing.assert_close(model.bias.grad, dz.sum(0) / 10)


def test_g14_the_second_moment_is_the_variance_only_after_centring():
    x = 3.0 + 2.0 * normal(20000, 1)
    assert x.square().mean().item() == pytest.approx(3**2 + 2**2, rel=0.03)  # the printed Σx²/m of raw data
    normalizer = InputNormalizer(1).fit(x)
    assert normalizer.var.item() == pytest.approx(2**2, rel=0.03)
    torch.testing.assert_close((x - x.mean()).square().mean().item(), normalizer.var.item())


def test_g16_the_two_momentums_differ_by_a_factor():
    def trajectory(optimizer, **settings):
        parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimiser = optimizer([parameter], **settings)
        for step in range(20):
            parameter.grad = normal(3, seed=step)
            optimiser.step()
        return parameter.detach()

    beta, alpha = 0.9, 0.1
    notes = trajectory(Momentum, lr=alpha, momentum=beta)
    without = trajectory(Momentum, lr=alpha * (1 - beta), momentum=beta, form="sum")
    twin = trajectory(torch.optim.SGD, lr=alpha * (1 - beta), momentum=beta)
    torch.testing.assert_close(notes, without, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(without, twin, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(notes, trajectory(torch.optim.SGD, lr=alpha, momentum=beta), rtol=0.1)


def test_g15_both_running_averages_are_offered():
    x, beta = normal(8, 3) * 2 + 1, 0.9
    biased, unbiased = x.var(0, unbiased=False), x.var(0, unbiased=True)
    ones = torch.ones(3, dtype=torch.float64)
    default, notes = (nn.BatchNorm1d(3, dtype=torch.float64, **form) for form in ({}, {"average": 0.9}))
    twin = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    for module in (default, notes, twin):
        module(x)
    torch.testing.assert_close(default.running_var, twin.running_var)
    torch.testing.assert_close(default.running_var, beta * ones + (1 - beta) * unbiased)
    torch.testing.assert_close(notes.running_var, beta * ones + (1 - beta) * biased)


def test_g17_the_weight_gradient_is_an_outer_product():
    a, weight = normal(1, 4), torch.nn.Parameter(normal(3, 4, seed=1))
    z = ops.linear(a, weight)
    dz = normal(1, 3, seed=2)
    z.backward(dz)
    assert weight.grad.shape == weight.shape
    torch.testing.assert_close(weight.grad, torch.outer(dz[0], a[0]))
    with pytest.raises(RuntimeError):  # the printed elementwise product: a 3-vector with a 4-vector
        dz[0] * a[0]
