"""Blame and cure: the cause that was planted is the one named, and the cure cures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.diagnostics._signals import mlp
from torchnotes.diagnostics import probe
from torchnotes.diagnostics.prescription import Prescription, apply_prescription, prescriptions
from torchnotes.diagnostics.prescription_blame import ideal_gain

WIDTH = 128


def _batch(width=WIDTH):
    return torch.randn(32, width, generator=torch.Generator().manual_seed(5))


def _net(depth, variance, *make, seed=0):
    modules = []
    layers = mlp(depth, WIDTH, None, variance, seed)
    for layer in layers[:-1]:
        modules += [layer, *(factory() for factory in make)]
    return nn.Sequential(*modules, layers[-1])


def _diagnose(net):
    torch.manual_seed(0)  # dropout masks
    report = probe(net, _batch())
    return report, prescriptions(report.layers, report.verdict)


def _assert_cured(net, cure):
    apply_prescription(net, cure)
    torch.manual_seed(0)
    assert probe(net, _batch()).healthy


@pytest.mark.parametrize(
    ("variance", "make", "words", "factor"),
    [
        (1.0, nn.ReLU, ["variance 1/n around ReLU", "halve the second moment", "multiply them by √2"], math.sqrt(2)),
        (4.0, nn.ReLU, ["around ReLU", "double the second moment", "multiply them by 1/√2"], math.sqrt(0.5)),
        (0.3, nn.Tanh, ["around Tanh", "multiply them by 1.8"], math.sqrt(1 / 0.3)),
        (9.0, nn.Tanh, ["around Tanh", "of the gradient", "multiply them by 0.333"], 1 / 3),
    ],
)
def test_weights_at_the_wrong_scale(variance, make, words, factor):
    net = _net(50, variance, make)
    report, cure = _diagnose(net)
    assert not report.healthy
    assert cure[0].cause == "weight scale"
    for word in words:
        assert word in report.prescription, report.prescription
    assert list(cure[0].factors.values())[-1] == pytest.approx(factor, rel=0.03)
    _assert_cured(net, cure)


def test_weights_before_a_functional_activation():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(mlp(40, WIDTH, None, 1.0, 0))

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    net = Functional()
    _, cure = _diagnose(net)
    assert cure[0].cause == "weight scale"
    _assert_cured(net, cure)


def test_the_notes_linear_nets_are_cured_exactly():
    layers = [nn.Linear(2, 2, bias=False) for _ in range(150)]
    for layer in layers:
        nn.init.eye_(layer.weight).data.mul_(1.1)
    net = nn.Sequential(*layers)
    report = probe(net, torch.ones(1, 2))
    apply_prescription(net, prescriptions(report.layers, report.verdict))
    # What is left of 1.1 after 150 layers of float32 factors: 150 round-offs of 6e-8.
    assert probe(net, torch.ones(1, 2)).forward_growth == pytest.approx(1.0, abs=1e-5)


def test_weights_that_go_wrong_half_way_are_blamed_from_there():
    net = _net(60, 2.0, nn.ReLU)
    for layer in net[60::2]:
        layer.weight.data.mul_(math.sqrt(0.5))
    _, cure = _diagnose(net)
    assert set(cure[0].blamed) <= {str(index) for index in range(60, 120)}
    assert cure[0].blamed[0] in {"60", "62", "64"}
    _assert_cured(net, cure)


def test_one_layer_at_the_wrong_scale():
    net = _net(30, 2.0, nn.ReLU)
    net[20].weight.data.mul_(1e-4)
    report, cure = _diagnose(net)
    assert report.prescription.startswith("At `20`: its weights are 9.99e-05 times as large as keeps the signal")
    assert cure[0].factors["20"] == pytest.approx(1e4, rel=0.05)
    _assert_cured(net, cure)


def test_dropout_that_the_weights_do_not_make_up_for():
    net = _net(40, 2.0, nn.ReLU, lambda: nn.Dropout(0.5))
    report, cure = _diagnose(net)
    assert cure[0].cause == "dropout"
    assert "dropout that keeps 0.5 multiplies the second moment by 2" in report.prescription
    _assert_cured(net, cure)


def test_a_sigmoid_cannot_be_cured_by_scaling():
    net = _net(30, 1.0, nn.Sigmoid)
    report, cure = _diagnose(net)
    assert cure[0].cause == "activation"
    assert "Sigmoid passes on too little of the gradient (×0.23" in report.prescription
    with pytest.raises(ValueError, match="no scaling of weights cures it"):
        apply_prescription(net, cure)


def test_batch_norm_without_skips():
    _, cure = _diagnose(_net(40, 2.0, lambda: nn.BatchNorm1d(WIDTH), nn.ReLU))
    assert cure[0].cause == "normalisation without skip connections"
    assert "multiplies the gradient by 1.2" in cure[0].text


def test_skip_connections_without_normalisation():
    class Block(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.up, self.down = *mlp(1, WIDTH, None, 2.0, seed), *mlp(1, WIDTH, None, 1.0, 100 + seed)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    net = nn.Sequential(*[Block(seed) for seed in range(20)])
    _, cure = _diagnose(net)
    assert cure[0].cause == "missing normalisation"
    assert "by 1/√20" in cure[0].text
    assert cure[0].factors == {f"{index}.down": pytest.approx(20**-0.5) for index in range(20)}
    _assert_cured(net, cure)


def test_a_dead_layer():
    net = _net(30, 2.0, nn.ReLU)
    net[20] = nn.Linear(WIDTH, WIDTH)
    net[20].bias.data.fill_(-100.0)
    net[22] = nn.Linear(WIDTH, WIDTH, bias=False)
    _, cure = _diagnose(net)
    assert cure[0].cause == "dead layer"
    assert "The ReLU before `22` is dead" in cure[0].text


def test_zero_weights():
    net = _net(20, 2.0, nn.ReLU)
    net[10].weight.data.zero_()
    _, cure = _diagnose(net)
    assert cure[0].cause == "zero weights"
    assert "The weights of `10` are all zero" in cure[0].text


def test_non_finite_weights():
    net = _net(20, 2.0, nn.ReLU)
    net[10].weight.data[3, 4] = math.nan
    _, cure = _diagnose(net)
    assert cure[0].cause == "non-finite weights"
    assert "The weights of `10` hold 1 infinities or NaNs" in cure[0].text


def test_a_non_finite_value_made_by_a_function():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    net = nn.Sequential(*mlp(3, WIDTH, nn.ReLU, 2.0, 0), Log())
    report, cure = _diagnose(net)
    assert report.first_bad_layer == "5"
    assert cure[0].cause == "non-finite value"
    assert "logarithm" in cure[0].text


def test_an_overflow_is_traced_to_the_weights():
    net = _net(80, 64.0, nn.Identity)  # ×8 per layer: past float32 at layer 42
    _, cure = _diagnose(net)
    assert cure[0].cause == "weight scale"
    _assert_cured(net, cure)


def test_a_healthy_net_needs_nothing():
    net = _net(20, 2.0, nn.ReLU)
    report, cure = _diagnose(net)
    assert cure == ()
    assert report.prescription == ""
    with pytest.raises(ValueError, match="the report is healthy"):
        apply_prescription(net, cure)


def test_a_shared_layer_is_scaled_once():
    layer = mlp(1, WIDTH, None, 1.0, 0)[0]
    net = nn.Sequential(*[module for _ in range(40) for module in (layer, nn.ReLU())])
    _, cure = _diagnose(net)
    before = layer.weight.detach().clone()
    applied = apply_prescription(net, cure)
    assert list(applied.factors) == ["0.weight"]
    assert torch.allclose(layer.weight, before * applied.factors["0.weight"])
    assert "0.weight" in str(applied)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="model must have the layers that were probed, got none named 'fc7'"):
        apply_prescription(nn.Linear(2, 2), Prescription("weight scale", "", (), {"fc7": 2.0}))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        apply_prescription(torch.relu, Prescription("weight scale", "", (), {"fc7": 2.0}))


def test_ideal_gains():
    assert ideal_gain(torch.relu) == pytest.approx(math.sqrt(2))
    assert ideal_gain(torch.tanh) == pytest.approx(1.0, rel=1e-4)
    assert ideal_gain(nn.SELU()) == pytest.approx(1.0, rel=1e-3)
    assert ideal_gain(torch.sigmoid) is None


def test_the_report_carries_its_prescription_out():
    net = _net(50, 1.0, nn.ReLU)
    report, _ = _diagnose(net)
    report.apply(net)
    assert probe(net, _batch()).healthy
