"""What a check leaves behind: nothing, also when it is interrupted; and how it treats randomness and buffers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data, net, seeded
from torchnotes.gradcheck import check_gradients


def everything(model):
    values = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    flags = [(m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in model.modules()]
    identities = [id(p) for p in model.parameters()]
    return values, grads, flags, identities, torch.get_rng_state()


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert all((a is None) == (b is None) for a, b in zip(before[1].values(), after[1].values(), strict=True))
    assert all(a is None or torch.equal(a, b) for a, b in zip(before[1].values(), after[1].values(), strict=True))
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4], after[4])


def mixed(dtype=torch.float64):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)).to(dtype)
    seeded(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_check_disturbs_nothing(dtype, method):
    model, (x, y) = mixed(dtype), data(dtype=dtype)
    before = everything(model)
    report = check_gradients(model, x, y, loss=F.cross_entropy, method=method)
    assert report.verdict == "correct", str(report)
    assert_same(before, everything(model))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("after", [1, 7, 60, 200])
def test_an_interrupted_check_disturbs_nothing(error, after):
    model, (x, y) = mixed(), data()
    before = everything(model)
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += 1
        if calls > after:
            raise error("stop")
        float(output.detach().sum())  # which vmap refuses, so that evaluations are many: the plain loop's
        return F.cross_entropy(output, target)

    with pytest.raises(error, match="stop"):
        check_gradients(model, x, y, loss=loss)
    assert_same(before, everything(model))


def test_dropout_frozen_or_off():
    model, (x, y) = net(), data()
    model.insert(2, nn.Dropout(0.5))
    frozen = check_gradients(model, x, y, loss=F.cross_entropy)
    off = check_gradients(model, x, y, loss=F.cross_entropy, dropout="off")
    assert frozen.verdict == off.verdict == "correct"
    assert any("held fixed" in note for note in frozen.notes)
    assert not any("held fixed" in note for note in off.notes)
    model.eval()
    silent = check_gradients(model, x, y, loss=F.cross_entropy)
    assert off.costs == silent.costs
    assert off.by_parameter["0.weight"].rms == pytest.approx(silent.by_parameter["0.weight"].rms, rel=1e-12)
    assert frozen.by_parameter["0.weight"].rms != pytest.approx(off.by_parameter["0.weight"].rms, rel=1e-3)


def test_dropout_by_keep_prob_is_switched_off_and_on_again():
    class Keep(nn.Module):
        def __init__(self):
            super().__init__()
            self.keep_prob = 0.5

        def forward(self, x):
            return x * (torch.rand_like(x) < self.keep_prob) / self.keep_prob

    model, (x, y) = net(), data()
    model.insert(2, Keep())
    report = check_gradients(model, x, y, loss=F.cross_entropy, dropout="off")
    assert report.verdict == "correct"
    assert model[2].keep_prob == 0.5
    with pytest.raises(ValueError, match=r"dropout must be 'frozen' or 'off', got 'no'"):
        check_gradients(model, x, y, loss=F.cross_entropy, dropout="no")


def test_a_bias_before_batch_norm_has_a_zero_gradient_and_is_right():
    model, (x, y) = mixed(), data()
    model[3].p = 0.0
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    bias = report.by_parameter["0.bias"]
    assert bias.ratio > 1e-3  # the notes' ratio of two round-offs means nothing
    assert bias.verdict == "correct"
    assert "zero to within the noise floor" in bias.reason


def test_a_vast_penalty_does_not_hide_a_wrong_data_gradient():
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 1.01 * g

    class Layer(nn.Linear):
        def forward(self, x):
            return Off.apply(super().forward(x))

    model = seeded(nn.Sequential(Layer(6, 3).double()))
    x, y = data()
    report = check_gradients(
        model, x, y, loss=F.cross_entropy, penalty=lambda m: 1e9 * m[0].weight.square().sum(), modules=False
    )
    verdicts = {c.name: c.verdict for c in report.costs}
    assert verdicts["data cost"] == "wrong"
    assert verdicts["penalty"] == "correct"
    assert report.verdict == "wrong"
    assert "data cost alone" in report.by_parameter["0.weight"].reason


def test_a_wrong_penalty_is_found_and_named():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            ctx.save_for_backward(w)
            return w.square().sum()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]  # 2 left out

    model, (x, y) = net(), data()
    report = check_gradients(model, x, y, loss=F.cross_entropy, penalty=lambda m: 0.1 * Half.apply(m[0].weight))
    assert report.verdict == "wrong"
    assert {c.name: c.verdict for c in report.costs}["data cost"] == "correct"
    assert "½" in report.by_parameter["0.weight"].pattern or "penalty" in report.by_parameter["0.weight"].pattern


def test_a_loss_that_holds_the_model_is_refused_where_a_copy_is_checked():
    model, (x, y) = net(dtype=torch.float32), data(dtype=torch.float32)

    def loss(output, target):
        return F.cross_entropy(output, target) + model[0].weight.double().square().sum()

    with pytest.raises(ValueError, match=r"through the model they are given.*penalty=lambda model"):
        check_gradients(model, x, y, loss=loss)
    model.double()
    assert check_gradients(model, x.double(), y, loss=loss).verdict == "correct"


class Unsteady(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3).double(), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda x, y: (Unsteady(), x, y, F.cross_entropy), r"same in two identical calls.*generators="),
        (lambda x, y: (net(), x, y, lambda o, t: o), r"loss must return a real scalar.*\(12, 3\).*\.mean\(\)"),
        (lambda x, y: (net(), x, None, None), r"without a loss the model must return a real scalar.*pass loss="),
        (lambda x, y: (net(), x, y, lambda o, t: o.sum() / 0), r"J must be finite, got .*inf.*division by zero"),
        (lambda x, y: (net().requires_grad_(False), x, y, F.cross_entropy), r"parameter that requires grad, got none"),
    ],
)
def test_costs_that_cannot_be_checked_are_refused_in_words(build, words):
    x, y = data()
    model, inputs, target, loss = build(x, y)
    with pytest.raises(ValueError, match=words):
        check_gradients(model, inputs, target, loss=loss)


def test_bad_arguments_are_refused_in_words():
    x, y = data()
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got .*use check_function"):
        check_gradients(torch.tanh, x)
    with pytest.raises(ValueError, match=r"method must be 'exact' or 'projected', got 'fast'"):
        check_gradients(net(), x, y, loss=F.cross_entropy, method="fast")
    with pytest.raises(TypeError, match=r"inputs must be real, got dtype complex128"):
        check_gradients(net(), x.to(torch.complex128), y, loss=F.cross_entropy)
    with pytest.raises(TypeError, match=r"parameters must be real, got dtype complex64 for weight"):
        check_gradients(nn.Linear(6, 3, dtype=torch.complex64), x, y, loss=F.cross_entropy)
    with pytest.raises(
        ValueError, match=r"parameters must name parameters that require grad, got \['9'\]; choose from"
    ):
        check_gradients(net(), x, y, loss=F.cross_entropy, parameters=["9"])
    with pytest.raises(ValueError, match=r"penalty must return a scalar tensor, got int 0"):
        check_gradients(net(), x, y, loss=F.cross_entropy, penalty=lambda m: 0)


def test_deepcopied_state_stays_shared_with_nobody():
    model, (x, y) = net(dtype=torch.float32), data(dtype=torch.float32)
    twin = copy.deepcopy(model)
    check_gradients(model, x, y, loss=F.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
