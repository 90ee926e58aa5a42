"""Data-driven calibration: every layer at the rms asked for, everything else as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchnotes.diagnostics import probe
from torchnotes.init import calibrate_


def _batch(count=64, width=128):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def _net(depth, variance, *make, width=128, bias=False):
    generator = torch.Generator().manual_seed(0)
    modules = []
    for _ in range(depth):
        layer = nn.Linear(width, width, bias=bias)
        nn.init.normal_(layer.weight, std=math.sqrt(variance / width), generator=generator)
        modules += [layer, *(factory() for factory in make)]
    return nn.Sequential(*modules)


def _outputs(net, x):
    found, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            hooks.append(module.register_forward_hook(lambda m, a, y, name=name: found.update({name: (m, y)})))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("make", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid])
@pytest.mark.parametrize("target", [1.0, 0.3])
def test_every_layer_has_the_rms_asked_for_on_a_later_pass(make, target):
    net = _net(8, 0.2, make)
    report = calibrate_(net, _batch(), target=target)
    for name, (_, y) in _outputs(net, _batch()).items():
        # float32 sums of 128 terms
        assert y.square().mean().sqrt().item() == pytest.approx(target, rel=1e-4)
        assert report[name].after == pytest.approx(target, rel=1e-4)
        assert report[name].factor == pytest.approx(target / report[name].before)


def test_biases_are_kept_and_left_out_of_the_measure():
    net = _net(4, 1.0, nn.ReLU, bias=True)
    for layer in net[::2]:
        layer.bias.data.fill_(0.5)
    calibrate_(net, _batch())
    for module, y in _outputs(net, _batch()).values():
        assert torch.equal(module.bias, torch.full((128,), 0.5))
        assert (y - module.bias).square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)


def test_convolutions_with_bias_and_batch_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten())
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    x = torch.randn(16, 3, 12, 12)
    calibrate_(net, x)
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    for module, y in _outputs(net, x).values():
        linear = y - module.bias.reshape(-1, 1, 1)
        assert linear.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)


def test_orthogonal_start():
    net = _net(3, 1.0, nn.ReLU)
    calibrate_(net, _batch(), start="orthogonal", generator=torch.Generator().manual_seed(1))
    for layer in net[::2]:
        gram = layer.weight @ layer.weight.T
        scale = gram.diagonal().mean()
        assert torch.allclose(gram / scale, torch.eye(128), atol=1e-5)


def test_directions_are_kept():
    net = _net(3, 1.0, nn.ReLU)
    before = [layer.weight.detach().clone() for layer in net[::2]]
    report = calibrate_(net, _batch())
    for layer, weight, entry in zip(net[::2], before, report, strict=True):
        assert torch.allclose(layer.weight, weight * entry.factor)


@pytest.mark.parametrize(("variance", "make"), [(1.0, nn.ReLU), (8.0, nn.ReLU), (0.01, nn.GELU)])
def test_the_report_taken_again_is_healthy(variance, make):
    net = _net(50, variance, make)
    assert not probe(net, _batch()).healthy
    calibrate_(net, _batch())
    assert probe(net, _batch()).healthy


def test_a_deep_tanh_net_is_healthy_at_the_default_target_and_not_at_1():
    net = _net(50, 0.3, nn.Tanh)
    assert probe(net, _batch()).verdict.forward == "vanishing"
    assert calibrate_(net, _batch()).target == 0.3
    assert probe(net, _batch()).healthy
    calibrate_(net, _batch(), target=1.0)
    assert probe(net, _batch()).verdict.backward == "exploding"  # 1.08⁵⁰ = 47


@pytest.mark.parametrize(
    ("depth", "activation", "target"),
    [(9, nn.Tanh, 1.0), (12, nn.Tanh, 0.3), (12, nn.Hardtanh, 0.3), (50, nn.ReLU, 1.0), (50, nn.GELU, 1.0)],
)
def test_the_default_target_follows_from_the_activation(depth, activation, target):
    report = calibrate_(_net(depth, 1.0, activation), _batch())
    assert report.target == target
    assert [entry.after for entry in report] == pytest.approx([target] * len(report), rel=1e-4)


def test_dropout_is_calibrated_with_its_scale_and_the_random_state_is_put_back():
    net = _net(30, 2.0, nn.ReLU, lambda: nn.Dropout(0.5))
    torch.manual_seed(4)
    state = torch.get_rng_state()
    calibrate_(net, _batch())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    # Later masks are others, 30 layers of 64·128 values deep: 2/n of them at keep 0.5.
    last = list(_outputs(net, _batch()).values())[-1][1]
    assert 0.5 < last.square().mean().sqrt().item() < 2.0


def test_a_skip_connection_sees_calibrated_branches():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(128, 128)

        def forward(self, x):
            return x + self.fc(torch.relu(x))

    net = nn.Sequential(*[Block() for _ in range(5)])
    report = calibrate_(net, _batch())
    assert [entry.after for entry in report] == pytest.approx([1.0] * 5, rel=1e-4)


def test_a_layer_with_an_activation_of_its_own():
    from torchnotes import nn as notes

    net = nn.Sequential(*[notes.Dense(128, 128, "relu", keep_prob=0.8) for _ in range(4)])
    calibrate_(net, _batch())
    x = _batch()
    net.eval()
    z = torch.nn.functional.linear(x, net[0].weight)
    assert z.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)


def test_what_is_left_is_listed_with_the_reason():
    net = _net(4, 1.0, nn.ReLU)
    net[0].weight.requires_grad_(False)
    parametrizations.weight_norm(net[2])
    net.extra = nn.Linear(2, 2)
    shared = net[4]
    net.append(shared)
    frozen = net[0].weight.detach().clone()

    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused = net[:-2], nn.Linear(3, 3)

        def forward(self, x):
            return self.body(x)

    model = Without()
    report = calibrate_(model, _batch())
    assert torch.equal(net[0].weight, frozen)
    assert report["body.0"].note == "frozen"
    assert report["body.2"].note.startswith("parametrised")
    assert report["unused"].note == "never called as a module in this pass"
    text = " ".join(str(report).split())
    assert "frozen" in text
    assert "Calibration to rms 1" in text


def test_a_failed_pass_leaves_the_weights_as_they_were():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken on purpose")

    net = nn.Sequential(nn.Linear(128, 128), Broken())
    before = net[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        calibrate_(net, _batch(), start="orthogonal")
    assert torch.equal(net[0].weight, before)
    assert not net[0]._forward_hooks


def test_zero_weights_are_refused():
    net = _net(2, 1.0, nn.ReLU)
    net[2].weight.data.zero_()
    with pytest.raises(ValueError, match=r"every layer must pass a finite signal on, got rms 0\.0 at 2"):
        calibrate_(net, _batch())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.relu, torch.zeros(2)), TypeError, r"model must be a torch\.nn\.Module"),
        ((nn.Linear(2, 2), "text"), TypeError, "batch must hold a tensor"),
        ((nn.Linear(2, 2), torch.tensor([[math.nan, 1.0]])), ValueError, "batch must be finite, got 1 non-finite"),
        ((nn.ReLU(), torch.ones(2, 2)), ValueError, "model must run a layer whose weight can be scaled"),
        ((nn.LazyLinear(2), torch.ones(2, 2)), ValueError, "every parameter must have values"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        calibrate_(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="start must be 'as is' or 'orthogonal', got 'random'"):
        calibrate_(nn.Linear(2, 2), torch.ones(2, 2), start="random")
    with pytest.raises(ValueError, match=r"target must lie in \(0, inf\)"):
        calibrate_(nn.Linear(2, 2), torch.ones(2, 2), target=0.0)
