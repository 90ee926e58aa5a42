"""Models that are built or run in unusual ways: right ones are correct, and a fault planted in one is named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from tests.gradcheck._nets import seeded
from torchnotes.gradcheck import check_function, check_gradients

METHODS = ("exact", "projected")


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fault(torch.autograd.Function):
    """A copy of w, whose backward gives 1.01 of the gradient, its negative, or none of it for every second entry."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w, keep):
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def percent(w):
    return torch.full_like(w, 1.01)


def sign(w):
    return torch.full_like(w, -1.0)


def every_second(w):
    return (torch.arange(w.numel()) % 2).view_as(w).to(w)


class Faulty(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, w):
        return Fault.apply(w, self.factor(w.detach()))

    def right_inverse(self, w):
        return w


def planted(model, name, factor):
    """A copy whose parameter ``name`` passes through a faulty backward; and the parameter's new name."""
    model = copy.deepcopy(model)
    owner, _, leaf = name.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(owner), leaf, Faulty(factor))
    return model, f"{owner}.parametrizations.{leaf}.original".lstrip(".")


def twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 6))


class Equation(nn.Module):
    """U' + u for a network u of its input, as in a cost that asks for a differential equation to hold."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        x = x.detach().requires_grad_()
        u = self.b(torch.tanh(self.a(x)))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return slope + u


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 2)
        states = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            states.append(h)
        return self.out(torch.stack(states, 1))


class Shrinking(nn.Module):
    """How often it halves depends on the values."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        h = self.inner(x)
        while h.abs().max() > 0.5:
            h = 0.7 * h
        return h[h > -0.2]


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = self.inner(x).clone()
        h[..., :3].mul_(self.scale)
        h[..., 3:].add_(h[..., :3])
        h.view(-1)[::5].tanh_()
        return h


def convolutions():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 3)).to(
        memory_format=torch.channels_last
    )


def encoder(**options):
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, **options)


def brain_float():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).bfloat16()


X = randn(2, 4, 6)
MODELS = [
    pytest.param(encoder, X, "linear1.weight", id="encoder"),
    pytest.param(lambda: encoder(norm_first=True).eval(), X, "self_attn.in_proj_weight", id="encoder eval, norm first"),
    pytest.param(twice, randn(5, 6), "4.weight", id="one layer used twice"),
    pytest.param(Equation, randn(4, 3), "b.weight", id="derivative in the forward"),
    pytest.param(Loop, randn(2, 3, 3), "cell.weight_hh", id="recurrent loop"),
    pytest.param(Shrinking, X, "inner.weight", id="control flow by values"),
    pytest.param(Views, X, "scale", id="in place on views"),
    pytest.param(convolutions, randn(2, 2, 5, 5), "2.weight", id="channels last"),
    pytest.param(brain_float, X.bfloat16(), "0.weight", id="bfloat16"),
]


def weighted(out):
    return (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)).square().mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("make", "x", "name"), MODELS)
def test_right_is_correct_and_a_fault_is_named(make, x, name, method):
    model = seeded(make())
    report = check_gradients(model, x, loss=weighted, method=method)
    assert report.verdict == "correct", str(report)
    for factor in (percent, sign, every_second):
        wrong, where = planted(model, name, factor)
        report = check_gradients(wrong, x, loss=weighted, method=method, modules=True)
        assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [where], str(report)
        assert report.culprits == (where.replace(".original", ".0"),)


def test_a_layer_used_twice_is_left_as_it_was():
    model = twice().double()
    before = list(model.parameters())
    check_gradients(model, randn(5, 6), loss=weighted)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert model[0].weight is model[2].weight


def test_a_function_that_differentiates_on_its_way_is_checked():
    def laplacian(x, w):
        x = x.clone() if x.requires_grad else x.clone().requires_grad_()
        (first,) = torch.autograd.grad((x @ w).tanh().sum(), x, create_graph=True)
        return first

    assert check_function(laplacian, randn(3, 4), randn(4, 2), second_order=False).verdict == "correct"


@pytest.mark.parametrize("method", METHODS)
def test_gradients_scaled_by_frequency_are_no_wrong_gradients(method):
    words = torch.tensor([[1, 1, 2], [0, 3, 3], [1, 6, 6], [2, 2, 2]])
    model = seeded(nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3)))
    report = check_gradients(model, words, torch.tensor([0, 1, 2, 1]), loss=F.cross_entropy, method=method)
    assert report.verdict == "correct", str(report)
    assert any(
        note.startswith("0: scale_grad_by_freq divides the gradient of a row by how often") for note in report.notes
    )
    assert model[0].scale_grad_by_freq is True


def test_complex_parameters_are_refused_and_frozen_or_integer_ones_let_be():
    class Mixed(nn.Module):
        def __init__(self, trained):
            super().__init__()
            self.inner = nn.Linear(6, 3).double()
            self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex128), requires_grad=trained)
            self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)

        def forward(self, x):
            return (self.inner(x)[:, self.order] * self.phase).abs()

    with pytest.raises(
        TypeError, match=r"parameters must be real, got dtype complex128 for phase; check a real functi"
    ):
        check_gradients(Mixed(True), randn(4, 6), loss=weighted)
    assert check_gradients(Mixed(False), randn(4, 6), loss=weighted).verdict == "correct"
