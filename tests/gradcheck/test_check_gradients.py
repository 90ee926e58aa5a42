"""Whole models: right ones pass, wrong ones are named, nothing is disturbed."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.gradcheck._nets import data, faulty_net, net, seeded
from torchnotes.gradcheck import GradientMismatch, assert_gradients, check_gradients, gradient_ratio, numerical_gradient


def test_a_right_model_is_correct_at_the_notes_eps():
    model, (x, y) = net(), data()
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "correct"
    assert report.eps == 1e-7
    assert report.ratio <= 1e-7  # SPEC D5
    assert list(report.by_parameter) == [n for n, _ in model.named_parameters()]
    assert all(p.verdict == "correct" for p in report.by_parameter.values())


def test_the_ratio_is_the_notes_ratio():
    """The same number as from the two public pieces, over all parameters joined in the model's order."""
    model, (x, y) = net(), data()
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    approx = []
    for p in model.parameters():

        def cost(value, p=p):
            kept = p.detach().clone()
            with torch.no_grad():
                p.copy_(value)
                out = F.cross_entropy(model(x), y)
                p.copy_(kept)
            return out

        approx.append(numerical_gradient(cost, p))
    # The summation order of the two differs, so the round-off in the ratio (3e-8) does too, by its own size at most.
    assert report.ratio == pytest.approx(gradient_ratio(approx, [p.grad for p in model.parameters()]), abs=3e-8)


def test_relu_net_and_penalty():
    model, (x, y) = net(nn.ReLU), data()

    def penalty(m):
        return 0.05 * sum(p.square().sum() for n, p in m.named_parameters() if "weight" in n)

    report = check_gradients(model, x, y, loss=F.cross_entropy, penalty=penalty)
    assert report.verdict == "correct"
    assert [c.name for c in report.costs] == ["J", "data cost", "penalty"]
    assert report.costs[0].value == pytest.approx(report.costs[1].value + report.costs[2].value)


def times_four(gx, gw, gb, w):
    return gx, gw, 4 * gb


def transposed(gx, gw, gb, w):
    return gx, gw.T, gb


def sign(gx, gw, gb, w):
    return gx, -gw, gb


def half(gx, gw, gb, w):
    return gx, gw / 2, gb


def samples_too_many(gx, gw, gb, w):
    return gx, 12 * gw, gb


def mean_twice(gx, gw, gb, w):
    return gx, gw / 12, gb


def slightly(gx, gw, gb, w):
    return gx, gw * (1 + 5e-4), gb


def one_entry(gx, gw, gb, w):
    gw = gw.clone()
    gw[2, 1] += 1e-3
    return gx, gw, gb


def one_row(gx, gw, gb, w):
    gw = gw.clone()
    gw[3] = 0.1 + gw[3] ** 2
    return gx, gw, gb


def no_decay(gx, gw, gb, w):
    return gx, gw - 0.3 * w, gb


def forgotten(gx, gw, gb, w):
    return gx, gw, torch.zeros_like(gb)


def not_a_number(gx, gw, gb, w):
    return gx, gw, gb * math.nan


@pytest.mark.parametrize(
    ("fault", "parameter", "pattern"),
    [
        (times_four, "2.bias", "4 × too large"),
        (transposed, "2.weight", "transposed"),
        (sign, "2.weight", "sign"),
        (half, "2.weight", "uniform ½"),
        (samples_too_many, "2.weight", "12 × too large, and 12 is the number of samples: a sum where a mean"),
        (mean_twice, "2.weight", "1/12 of the right gradient, and 12 is the number of samples: the mean taken twice"),
        (slightly, "2.weight", "1.0005 × the right gradient throughout"),
        (one_entry, "2.weight", "1 of 16 entries wrong: [2, 1]"),
        (one_row, "2.weight", "row 3"),
        (no_decay, "2.weight", "penalty missing: what is left out is 0.3 × the L2 penalty"),
        (forgotten, "2.bias", "missing: the gradient is zero throughout"),
        (not_a_number, "2.bias", "not finite in 4 of 4 entries"),
    ],
)
def test_the_culprit_and_its_pattern_are_named(fault, parameter, pattern):
    x, y = data()
    report = check_gradients(faulty_net(fault), x, y, loss=F.cross_entropy)
    assert report.verdict == "wrong"
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [parameter]
    assert pattern in report.by_parameter[parameter].pattern
    assert report.worst(1)[0].parameter == parameter


def test_the_wrong_entry_is_named_by_row_and_column():
    x, y = data()
    report = check_gradients(faulty_net(one_entry), x, y, loss=F.cross_entropy)
    worst = report.worst(1)[0]
    assert (worst.parameter, worst.index) == ("2.weight", (2, 1))
    assert worst.exact - worst.approx == pytest.approx(1e-3, rel=1e-4)
    assert report.by_parameter["2.weight"].wrong == 1


def test_a_float32_model_is_checked_in_float64_and_left_untouched():
    model, (x, y) = net(dtype=torch.float32), data(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "correct"
    assert report.ratio < 1e-7  # impossible in float32, whose differences at this ε are all noise
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_assert_gradients_raises_the_report():
    x, y = data()
    with pytest.raises(GradientMismatch, match=r"(?s)WRONG.*2\.bias: 4 × too large") as caught:
        assert_gradients(faulty_net(times_four), x, y, loss=F.cross_entropy)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.verdict == "wrong"


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3).double()
        self.scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) * self.scale.detach()


def test_a_parameter_lost_on_the_way_is_wrong_and_said_to_be_detached():
    x, y = data()
    report = check_gradients(seeded(Detached()), x, y, loss=F.cross_entropy)
    assert report.verdict == "wrong"
    assert report.by_parameter["scale"].pattern.startswith("missing: J depends on it, but autograd finds no path")


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(6, 3).double(), nn.Linear(2, 2).double()

    def forward(self, x):
        return self.used(x)


def test_parameters_outside_the_cost_are_refused_and_can_be_left_out():
    x, y = data()
    with pytest.raises(
        ValueError, match=r"must take part in J, got spare\.weight, spare\.bias.*requires_grad_\(False\)"
    ):
        check_gradients(Spare(), x, y, loss=F.cross_entropy)
    assert check_gradients(Spare(), x, y, loss=F.cross_entropy, parameters=["used"]).verdict == "correct"


def test_keyword_inputs_tied_weights_and_a_model_that_returns_its_cost():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
            self.b.weight = self.a.weight

        def forward(self, x, scale):
            return (scale * self.b(torch.tanh(self.a(x)))).square().mean()

    report = check_gradients(seeded(Tied()), {"x": data()[0], "scale": torch.tensor(2.0)})
    assert report.verdict == "correct"
    assert list(report.by_parameter) == ["a.weight", "a.bias", "b.bias"]


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_embeddings_with_sparse_gradients_and_repeated_indices(method):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, words):
            return self.out(self.table(words).mean(1))

    words = torch.tensor([[1, 1, 2], [0, 3, 3], [1, 6, 6], [2, 2, 2]])
    model = seeded(Words().double())
    report = check_gradients(model, words, torch.tensor([0, 1, 2, 1]), loss=F.cross_entropy, method=method)
    assert report.verdict == "correct", str(report)


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_padding_row_is_no_wrong_gradient(method):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, words):
            return self.out(self.table(words).mean(1))

    words = torch.tensor([[1, 1, 2], [0, 3, 3], [0, 0, 6], [2, 2, 2]])  # J depends on row 0 here
    model = seeded(Words().double())
    with torch.no_grad():
        model.table.weight[0] = 0.5
    report = check_gradients(model, words, torch.tensor([0, 1, 2, 1]), loss=F.cross_entropy, method=method)
    assert report.verdict == "correct", str(report)
    assert any(note.startswith("table: padding_idx=0 withholds the gradient of that row") for note in report.notes)
    assert model.table.padding_idx == 0


@pytest.mark.parametrize("scale", [1e8, 1e-12])
def test_the_scale_of_j_does_not_decide(scale):
    x, y = data()
    model = seeded(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert check_gradients(model, x, y, loss=lambda o, t: scale * F.cross_entropy(o, t)).verdict == "correct"


class HookInForward(nn.Linear):
    """Registers one more hook with every call, so that the gradient is another each time: no round-off."""

    def forward(self, x):
        if torch.is_grad_enabled():
            self.weight.register_hook(lambda g: g + 1e-5 * (torch.arange(g.numel()) == 5).view_as(g))
        return super().forward(x)


def test_a_gradient_that_differs_with_every_backward_is_not_excused_as_round_off():
    x, y = data()
    model = seeded(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), HookInForward(4, 3)).double())
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "wrong"
    assert report.by_parameter["2.weight"].wrong == 1
    assert report.worst(1)[0].index == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_layers_are_left_out(dtype):
    x, y = data(dtype=dtype)
    model = net(dtype=dtype)
    model[0].requires_grad_(False)
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "correct", str(report)
    assert list(report.by_parameter) == ["2.weight", "2.bias", "4.weight", "4.bias"]
    assert not model[0].weight.requires_grad


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant=False):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.inner, self.out = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3)), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(checkpoint(self.inner, x, use_reentrant=self.use_reentrant))


def test_activation_checkpointing_is_no_fault():
    x, y = data()
    report = check_gradients(seeded(Checkpointed().double()), x, y, loss=F.cross_entropy)
    assert report.verdict == "correct", str(report)


def test_reentrant_checkpointing_has_its_gradient_from_backward_alone():
    x, y = data()
    model = seeded(Checkpointed(use_reentrant=True).double())
    model.inner[0].weight.grad = torch.full_like(model.inner[0].weight, 7.0)
    report = check_gradients(model, x.requires_grad_(), y, loss=F.cross_entropy)
    assert report.verdict == "correct", str(report)
    assert torch.equal(model.inner[0].weight.grad, torch.full_like(model.inner[0].weight, 7.0))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "inner.0.weight")
    assert x.grad is None


def test_a_hook_that_updates_with_the_gradient_is_not_run():
    x, y = data()
    model = net()
    for parameter in model.parameters():  # the optimiser's step in the backward: the check must not take it
        parameter.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    before = copy.deepcopy(model.state_dict())
    # The penalty reaches no bias: a parameter without a gradient in one of the costs.
    report = check_gradients(
        model,
        x,
        y,
        loss=F.cross_entropy,
        penalty=lambda m: sum(p.square().sum() for p in m.parameters() if p.dim() > 1),
    )
    assert report.verdict == "correct", str(report)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_reentrant_checkpointing_of_inputs_without_gradient_loses_its_own():
    x, y = data()
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        report = check_gradients(seeded(Checkpointed(use_reentrant=True).double()), x, y, loss=F.cross_entropy)
    assert report.verdict == "wrong"
    assert report.by_parameter["out.weight"].verdict == "correct"
    assert report.by_parameter["inner.0.weight"].verdict == "wrong"


def test_torchscript_is_refused_with_what_to_do():
    x, y = data()
    scripted = torch.jit.script(net())
    with pytest.raises(
        TypeError, match=r"written in Python, got \w+ with TorchScript in it; check the module that it was"
    ):
        check_gradients(scripted, x, y, loss=F.cross_entropy)
