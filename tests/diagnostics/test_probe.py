"""The probe: what it measures, what it leaves as it was, what it refuses."""

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchnotes.diagnostics import probe
from torchnotes.init import initialize_


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(depth=4, width=16, *, inplace=False, out=3):
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU(inplace=inplace))]
    net = nn.Sequential(*hidden, nn.Linear(width, out))
    initialize_(net, generator=seeded())
    return net


@pytest.fixture
def batch():
    return torch.randn(8, 16, generator=seeded(1)), torch.randint(0, 3, (8,), generator=seeded(2))


def by_hand(net, x, y):
    """Activations and the gradients that arrive at them, by autograd with retained gradients."""
    outputs = []
    for layer in net:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    F.cross_entropy(x, y).backward()
    return outputs


def test_numbers_against_autograd(batch):
    net = mlp()
    outputs = by_hand(net, *batch)
    weights = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    report = probe(net, *batch)
    assert [layer.name for layer in report.layers] == [str(i) for i in range(9)]
    for layer, output in zip(report.layers, outputs, strict=True):
        assert layer.activation.rms == pytest.approx(output.square().mean().sqrt().item(), rel=1e-5)
        assert layer.activation.mean == pytest.approx(output.mean().item(), rel=1e-4, abs=1e-6)
        assert layer.activation.share_zero == (output == 0).float().mean().item()
        assert layer.gradient.rms == pytest.approx(output.grad.square().mean().sqrt().item(), rel=1e-5)
        if layer.role == "weight":
            assert layer.weight.std == pytest.approx(net[int(layer.name)].weight.std(correction=0).item(), rel=1e-5)
            gradient = weights[f"{layer.name}.weight"]
            assert layer.weight_gradient.rms == pytest.approx(gradient.square().mean().sqrt().item(), rel=1e-5)
    assert [layer.depth for layer in report.layers] == [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert report.loss == pytest.approx(F.cross_entropy(net(batch[0]), batch[1]).item())


def test_in_place_activations_do_not_change_what_is_read(batch):
    plain, inplace = probe(mlp(), *batch), probe(mlp(inplace=True), *batch)
    assert [(a.activation, a.gradient) for a in plain.layers] == [(b.activation, b.gradient) for b in inplace.layers]


def state_of(model):
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002,
    }


def assert_same_state(before, after):
    assert all(torch.equal(before["values"][k], after["values"][k]) for k in before["values"])
    assert all(a is b for a, b in zip(before["gradients"], after["gradients"], strict=True))
    assert before["modes"] == after["modes"]
    assert before["hooks"] == after["hooks"]
    assert torch.equal(before["random"][0], after["random"][0])
    assert before["random"][1:] == after["random"][1:]


@pytest.mark.parametrize("fails", [None, "forward", "loss"])
def test_the_model_is_left_as_found(batch, fails):
    """Batch norm's buffers, dropout's random numbers, gradients, modes and hooks; also when something raises."""

    class Failing(nn.Module):
        def forward(self, x):
            if fails == "forward" and armed:
                raise OSError("planted")
            return x

    def loss(output, target):
        if fails == "loss":
            raise OSError("planted")
        return F.cross_entropy(output, target)

    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), Failing(), nn.Linear(16, 3))
    armed = False
    model(batch[0]).sum().backward()
    armed = True
    model[2].eval()
    kept = model[0].weight.grad.clone()
    before = state_of(model)
    if fails:
        with pytest.raises(OSError, match="planted"):
            probe(model, *batch, loss=loss)
    else:
        probe(model, *batch, loss=loss)
    assert_same_state(before, state_of(model))
    assert torch.equal(model[0].weight.grad, kept)


def test_without_a_loss_the_gradient_at_the_output_has_unit_scale(batch):
    report = probe(mlp(out=200), batch[0])
    assert report.layers[-1].gradient.rms == pytest.approx(1.0, rel=0.1)  # 1,600 normal numbers: ±2 %
    assert report.loss is None
    assert report.backward_growth is not None


def test_the_loss_a_model_returns_itself_is_used(batch):
    class WithLoss(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.body, self.form = mlp(), form

        def forward(self, x, labels):
            scores = self.body(x)
            loss = F.cross_entropy(scores, labels)
            return {"dict": {"loss": loss, "logits": scores}, "scalar": loss}[self.form]

    expected = F.cross_entropy(mlp()(batch[0]), batch[1]).item()
    for form in ("dict", "scalar"):
        report = probe(WithLoss(form), {"x": batch[0], "labels": batch[1]})
        assert report.loss == pytest.approx(expected)
        assert report.layers[0].gradient is not None


def test_mean_squared_error_for_floating_targets(batch):
    target = torch.zeros(8, 3)
    report = probe(mlp(), batch[0], target)
    assert report.loss == pytest.approx(mlp()(batch[0]).square().mean().item(), rel=1e-6)


def test_the_report_prints_counts_and_serialises(batch):
    net = mlp(depth=30)
    initialize_(net, "lecun", generator=seeded())
    report = probe(net, *batch)
    text = str(report)
    assert report.first_bad_layer is not None
    assert f"▶ {report.first_bad_layer}" in text
    assert "Verdict: activations vanishing" in text
    assert "grad rms" in text
    rows = report.rows()
    assert (len(rows), rows[0]["activation_rms"]) == (61, report.layers[0].activation.rms)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["verdict"]["forward"] == "vanishing"


def test_layers_that_were_never_called_are_named(batch):
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x):
            return self.used(x)

    report = probe(Partial(), *batch)
    assert report.unused == ("unused",)
    assert "Never called in this pass: unused" in str(report)


def test_non_finite_values_inside_are_found_where_they_begin(batch):
    net = mlp()
    with torch.no_grad():
        net[4].weight[0, 0] = math.inf
    report = probe(net, *batch)
    assert report.verdict.forward == "non-finite"
    assert report.first_bad_layer == "4"
    assert report.layers[3].activation.nonfinite == 0
    assert report.layers[4].activation.nonfinite > 0


class NoParameters(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, y: probe("net", x), TypeError, r"model must be a torch.nn.Module, got str 'net'"),
        (lambda x, y: probe(NoParameters(), x), ValueError, r"must have parameters, got NoParameters with none"),
        (lambda x, y: probe(mlp(), None), TypeError, r"inputs must hold a tensor, got NoneType None; pass the tensor"),
        (lambda x, y: probe(mlp(), x / 0), ValueError, r"inputs must be finite, got 128 non-finite values of 128"),
        (
            lambda x, y: probe(mlp(), x, y, loss=lambda o, t: o),
            ValueError,
            r"must be a scalar, got shape \(8, 3\); reduce",
        ),
        (lambda x, y: probe(mlp(), x, y, loss=lambda o, t: 1.0), TypeError, r"must return a tensor .* got float 1.0"),
        (lambda x, y: probe(mlp(), x, y[:4]), ValueError, r"integer targets must have shape .* got target \(4,\)"),
        (
            lambda x, y: probe(mlp(out=1), x, torch.ones(8)),
            ValueError,
            r"silently broadcast to \(8, 8\); add the missing",
        ),
        (lambda x, y: probe(mlp(), x, "cat"), TypeError, r"loss must be given .* got .* and str 'cat'"),
        (lambda x, y: probe(nn.LazyLinear(2), x), ValueError, r"got weight of a lazy module; run one batch first"),
        (lambda x, y: probe(mlp().to("meta"), x), ValueError, r"got 0.weight on the meta device; .*to_empty"),
    ],
)
def test_errors_by_their_wording(batch, call, error, words):
    with pytest.raises(error, match=words):
        call(*batch)


def test_modules_called_by_their_forward_method_cannot_be_seen(batch):
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, x):
            return {"n": x.shape[0], "y": self.fc.forward(x).long()}

    with pytest.raises(ValueError, match=r"must run at least one module .* call them as modules"):
        probe(Bypass(), batch[0])
