"""The monitor over training: what it records, what it must not change, and that it never breaks the user's loop."""

import copy
import json
import math
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from torchnotes.diagnostics import JsonLines, SignalMonitor, monitor_arguments, probe
from torchnotes.diagnostics.delivery import TOGETHER
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.lean_compiled import Compiled
from torchnotes.init import initialize_


@pytest.fixture(params=[Compiled, Lean], autouse=True)
def way(request, monkeypatch):
    """Everything here holds with numba and without."""
    monkeypatch.setattr(monitor_arguments, "_has_numba", lambda: request.param is Compiled)
    return request.param


# What summing float32 costs a mean: some units in the last place of the values, however near to zero the mean is.
ROUNDING = 3e-7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(depth=3, width=12, activation=nn.ReLU):
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width), activation())]
    net = nn.Sequential(*hidden, nn.Dropout(0.2), nn.Linear(width, 4))
    initialize_(net, generator=seeded())
    return net


def batches(steps, width=12, size=16):
    generator = seeded(1)
    for _ in range(steps):
        yield torch.randn(size, width, generator=generator), torch.randint(0, 4, (size,), generator=generator)


def train(net, steps=6, *, monitor=None, lr=0.1, micro=1, hand_in=True, optimizer=torch.optim.SGD):
    torch.manual_seed(3)
    opt = optimizer(net.parameters(), lr=lr)
    losses = []
    for x, y in batches(steps):
        opt.zero_grad()
        for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
            loss = F.cross_entropy(net(xs), ys) / micro
            loss.backward()
        opt.step()
        losses.append(loss.item())
        if monitor is not None and hand_in:
            monitor.step(loss)
    return losses


def watched(net, monitor):
    losses = train(net, monitor=monitor)
    monitor.close()
    return losses


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("every", [1, 3])
def test_training_is_bit_identical_with_and_without(tmp_path, every, optimizer):
    """Every statistic on, dropout in the net (so the random state counts), every bit of every parameter compared."""
    plain, watched = make(), make()
    expected = train(plain, optimizer=optimizer)
    with SignalMonitor(watched, tmp_path, every=every) as monitor:
        assert train(watched, monitor=monitor, optimizer=optimizer) == expected
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert not monitor.aside


def test_the_numbers_are_the_probes():
    """A step's record against the probe on a copy of the net as it stood, with the same batch."""
    net, records = make(), []
    net[6].p = 0.0  # the probe would draw another mask
    (x, y), *_ = batches(1)
    expected = probe(net, x, y)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        train(net, 1, monitor=monitor)
    (record,) = records
    for found, other in zip(record.layers, expected.layers, strict=True):
        assert found.label == other.label
        scale = ("count", "rms", "log10_rms", "mean", "std", "max_abs", "nonfinite")
        lone = ("count", "rms", "log10_rms", "max_abs", "nonfinite")
        shares = ("share_zero", "share_saturated") if found.role == "activation" else ()
        for part, fields in (
            ("activation", (*scale, *shares)),
            ("gradient", scale),
            ("weight", lone),
            ("weight_gradient", lone),
            ("bias", lone),
        ):
            a, b = getattr(found, part), getattr(other, part)
            assert (a is None) == (b is None)
            for field in fields if a is not None else ():
                # 192 values at most, in float32; an error of 1e-6 in the rms is one of 1e-6/ln 10 in its logarithm.
                known = getattr(b, field)
                slack = {"log10_rms": 1e-6 / math.log(10), "mean": ROUNDING * b.rms}.get(field, 1e-9)
                close = known if known is None else pytest.approx(known, rel=1e-6, abs=slack)
                assert getattr(a, field) == close, (part, field)
    assert record.loss == pytest.approx(expected.loss)
    growth = expected.forward_growth, expected.backward_growth
    assert (record.forward_growth, record.backward_growth) == pytest.approx(growth, rel=1e-6)


def test_steps_are_counted_by_the_optimizer_and_the_loss_is_handed_in():
    net, records = make(), []
    with SignalMonitor(net, None, every=4, sinks=[records.append]) as monitor:
        losses = train(net, 10, monitor=monitor)
    assert [record.step for record in records] == [0, 4, 8]
    assert [record.loss for record in records] == pytest.approx([losses[0], losses[4], losses[8]])
    assert records[0].learning_rate == 0.1
    assert monitor.steps == 10


def test_without_a_call_to_step():
    net, records = make(), []
    with SignalMonitor(net, None, every=2, sinks=[records.append]):
        train(net, 5, hand_in=False)
    assert [(record.step, record.loss) for record in records] == [(0, None), (2, None), (4, None)]


def test_a_loss_handed_in_before_the_update():
    net, records = make(), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        for x, y in batches(3):
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            monitor.step(loss)
            opt.step()
    assert [record.step for record in records] == [0, 1, 2]
    assert all(record.loss is not None and record.update_ratio for record in records)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_pass_made_inside_the_optimizers_step(by_name):
    """LBFGS asks for a closure, and Lightning always gives one."""
    net, records = make(depth=1), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        for x, y in batches(3):

            def closure(x=x, y=y):
                opt.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                return loss

            monitor.step(opt.step(closure=closure) if by_name else opt.step(closure))
    assert [record.step for record in records] == [0, 1, 2]
    for record in records:
        expected = 0.1 * record.layers[0].weight_gradient.rms / record.layers[0].weight.rms
        assert record.update_ratio["0.weight"] == pytest.approx(expected, rel=1e-3)
        assert record.loss is not None
        assert record.layers[0].gradient is not None


def test_updates_without_an_optimizer_are_counted_by_hand():
    net, records = make(), []
    with SignalMonitor(net, None, every=2, sinks=[records.append]) as monitor:
        for x, y in batches(5):
            loss = F.cross_entropy(net(x), y)
            net.zero_grad()
            loss.backward()
            monitor.step(loss)
            with torch.no_grad():
                for p in net.parameters():
                    p.sub_(p.grad, alpha=0.1)
    assert [record.step for record in records] == [0, 2, 4]
    weight = records[0].layers[0]
    expected = 0.1 * weight.weight_gradient.rms / weight.weight.rms  # SGD: Δw = −α g
    assert records[0].update_ratio["0.weight"] == pytest.approx(expected, rel=1e-5)


def test_update_to_weight_ratio_of_sgd_is_known():
    net, records = make(), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        train(net, 3, lr=0.05)
    for record in records:
        for layer in (layer for layer in record.layers if layer.role == "weight"):
            expected = 0.05 * layer.weight_gradient.rms / layer.weight.rms
            # Δw is taken from weights rounded to float32: 6e-8 of w against a Δw of 1e-3 w. 12 rows: all are taken.
            assert record.update_ratio[f"{layer.name}.weight"] == pytest.approx(expected, rel=1e-3)


def test_update_to_weight_ratio_of_a_large_weight_is_estimated():
    """From 1,024 or so of 320,000 entries, evenly spread."""
    net, records = nn.Linear(800, 400, bias=False), []
    initialize_(net, generator=seeded())
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        net.weight.grad = torch.randn(400, 800, generator=seeded(1))
        net(torch.ones(1, 800)).sum()
        opt.step()
    expected = 0.05 / math.sqrt(1 / 800)
    assert records[0].update_ratio["weight"] == pytest.approx(
        expected, rel=0.1
    )  # a thousand entries: ±2 %, and as much for w


def test_gradient_accumulation_measures_the_last_pass_and_the_whole_gradient():
    net, records = make(), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        train(net, 2, monitor=monitor, micro=4)
    assert [record.step for record in records] == [0, 1]
    assert records[0].layers[0].shape == (4, 12)  # 16 samples in 4 passes
    assert all(layer.call == 0 for layer in records[0].layers)
    assert records[1].layers[0].weight_gradient.rms == pytest.approx(net[0].weight.grad.square().mean().sqrt().item())


def test_evaluation_passes_are_not_measured():
    net, records = make(), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        for x, y in batches(2):
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            net.eval()
            with torch.no_grad():
                net(torch.full((1, 12), 1e6))
            net.train()
            opt.step()
    assert all(record.layers[0].activation.rms < 100 for record in records)
    assert all(record.layers[0].gradient is not None for record in records)


def test_parts_called_without_the_whole_are_measured():
    """As in a Lightning module, whose training_step calls self.encoder and never self."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    net, records = Whole(), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        for x, y in batches(2):
            opt.zero_grad()
            F.cross_entropy(net.head(net.encoder(x)), y).backward()
            opt.step()
    assert [[layer.label for layer in record.layers] for record in records] == [["encoder", "head"]] * 2


def test_other_optimizers_do_not_count():
    net, other, records = make(), nn.Linear(2, 2), []
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        other(torch.ones(1, 2)).sum().backward()
        stranger.step()
        assert monitor.steps == 0
        train(net, 2)
    assert len(records) == 2


def test_nothing_is_done_on_other_steps(monkeypatch, way):
    """Nothing is measured between logged steps: the measurements are counted."""
    measured = []

    def counted(name, count):
        real = getattr(way, name)

        def method(self, *args, **kwargs):
            measured.extend(count(args[0]))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(way, name, method)

    counted("output", lambda tensor: [1])
    counted("gradient", lambda tensor: [1])
    counted("parameters", lambda tensors: [1] * len(tensors))
    net = make()
    counts = []
    with SignalMonitor(net, None, every=5) as monitor:
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for x, y in batches(6):
            measured.clear()
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
            counts.append(len(measured))
            hooked = sum(len(m._forward_hooks) for m in net.modules())
            assert hooked == (9 if monitor.steps % 5 == 0 else 0)
    # 8 modules (the dropout included), as many gradients, and 4 layers with weight, its gradient and bias.
    assert counts == [28, 0, 0, 0, 0, 28]
    assert not monitor.aside


class TestDetail:
    """Full measurements thinned: between them the weight layers' scale alone, and that exactly."""

    def records(self, **kwargs):
        net, records = make(), []
        with SignalMonitor(net, None, every=1, sinks=[records.append], **kwargs) as monitor:
            train(net, 7, monitor=monitor)
        assert not monitor.aside
        return records, monitor

    def test_the_scale_is_that_of_a_full_measurement(self, way):
        (full, _), (thinned, monitor) = self.records(), self.records(detail=3)
        assert [record.full for record in thinned] == [True, False, False, True, False, False, True]
        assert [record.loss for record in thinned] == [record.loss for record in full]
        for one, other in zip(full, thinned, strict=True):
            assert (other.forward_growth, other.backward_growth) == pytest.approx(
                (one.forward_growth, one.backward_growth)
            )
            assert bool(other.update_ratio) == bool(other.dead) == other.full
            known = {layer.label: layer for layer in one.layers}
            kept = [layer.label for layer in one.layers if layer.role == "weight" or other.full]
            assert [layer.label for layer in other.layers] == kept
            for layer in other.layers:
                for part in ("activation", "gradient", "weight", "weight_gradient"):
                    a, b = getattr(known[layer.label], part), getattr(layer, part)
                    assert b is None if a is None else b.rms == pytest.approx(a.rms, rel=1e-6)
        largest = thinned[1].layers[0].activation.max_abs
        assert math.isnan(largest) if way is Lean else largest == full[1].layers[0].activation.max_abs
        assert monitor.last is thinned[6]

    def test_the_report_is_that_of_the_last_full_step(self):
        records, monitor = self.records(detail=4)
        assert monitor.report is not None
        assert monitor.report.layers[0] == records[4].layers[0]
        assert len(monitor.report.layers) == 8

    def test_dead_units_are_counted_on_full_steps(self):
        net, records = TestDeadUnits().net(), []
        with SignalMonitor(net, None, every=1, detail=2, window=3, sinks=[records.append]):
            train(net, 6)
        assert [record.dead.get("1") for record in records] == [0.0, None, 0.0, None, pytest.approx(5 / 12), None]

    def test_non_finite_values_are_seen_between_full_steps(self):
        net = make()
        with SignalMonitor(net, None, every=1, detail=10) as monitor:
            opt = torch.optim.SGD(net.parameters(), lr=0.1)
            for step, (x, y) in enumerate(batches(4)):
                opt.zero_grad()
                F.cross_entropy(net(x * (math.inf if step == 2 else 1)), y).backward()
                opt.step()
        assert (monitor.alerts[0].step, monitor.alerts[0].layer) == (2, "0")
        assert "in the activations of 0 or between it and the weight layer before" in monitor.alerts[0].text

    def test_training_and_its_log_are_as_ever(self, tmp_path):
        plain, net = make(), make()
        expected = train(plain)
        with SignalMonitor(net, tmp_path, every=1, detail=3) as monitor:
            assert train(net, monitor=monitor) == expected
        assert not monitor.aside
        assert list(tmp_path.glob("events*"))


class Copies(TorchDispatchMode):
    """Counts what brings numbers to the host: every one of these makes it wait for a device."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waits.append(str(function))
        return function(*args, **(kwargs or {}))


def as_on_a_device(monkeypatch):
    """The way of tensors on other devices, which is plain torch and runs on the CPU too."""
    from torchnotes.diagnostics import lean, lean_compiled, units

    monkeypatch.setattr(lean, "is_ordinary", lambda tensor: False)
    monkeypatch.setattr(lean_compiled, "is_ordinary", lambda tensor: False)
    monkeypatch.setattr(lean.Lean, "gradient", lambda self, x: self._on_device(lean.plain(x), None, zeros=False))
    monkeypatch.setattr(
        lean.Lean,
        "output",
        lambda self, x, ends, axis: self._on_device(lean.plain(x), ends, zeros=axis is not None),
    )
    monkeypatch.setattr(
        units,
        "_idle",
        lambda x, axis, low, high: (
            units._is_idle(x.movedim(axis, -1).reshape(-1, x.shape[axis]), low, high).all(dim=0).to(torch.int32)
        ),
    )


def test_on_a_device_nothing_waits_and_one_copy_brings_all(monkeypatch, tmp_path):
    """No number leaves the device during the step; then all of them at once, the loss and histograms too."""
    from torchnotes.diagnostics.measuring import Shipment

    as_on_a_device(monkeypatch)
    shipped = []
    real = Shipment.ship
    monkeypatch.setattr(Shipment, "ship", lambda self: shipped.append(len(self._parts)) or real(self))
    net = make()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    (x, y), *_ = batches(1)
    with SignalMonitor(net, tmp_path, every=1) as monitor:
        with Copies() as copies:
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            monitor.step(loss)
        assert copies.waits == []
        assert shipped == [1]
        assert monitor.report is not None
    assert not monitor.aside


def test_the_numbers_of_a_device_are_those_of_the_host(monkeypatch):
    found = []
    for device in (False, True):
        if device:
            as_on_a_device(monkeypatch)
        net, records = make(activation=nn.Tanh), []
        with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
            train(net, 3, monitor=monitor)
        found.append(records)
    for host, device in zip(*found, strict=True):
        assert device.loss == pytest.approx(host.loss)
        assert device.update_ratio == pytest.approx(host.update_ratio)
        assert device.dead == host.dead
        assert device.saturated == host.saturated
        for a, b in zip(host.layers, device.layers, strict=True):
            for part in ("activation", "gradient", "weight", "weight_gradient", "bias"):
                one, other = getattr(a, part), getattr(b, part)
                assert (one is None) == (other is None)
                if one is not None:
                    expected = one.rms, one.max_abs, one.nonfinite
                    assert (other.rms, other.max_abs, other.nonfinite) == pytest.approx(expected, rel=1e-5)
            assert b.activation.mean == pytest.approx(a.activation.mean, abs=1e-6)
            assert b.activation.share_saturated == pytest.approx(a.activation.share_saturated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_synchronisation_on_cuda(tmp_path):
    """PyTorch itself raises at whatever makes the host wait, from the forward pass to the hand-over of the loss."""
    net = make(depth=6, width=64).cuda()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(32, 64, device="cuda")
    y = torch.randint(0, 4, (32,), device="cuda")
    with SignalMonitor(net, tmp_path, every=1) as monitor:
        for step in range(3):
            torch.cuda.synchronize()
            if step:
                monitor._safely(monitor._deliver)  # read one step later: that wait is over by then
                torch.cuda.set_sync_debug_mode("error")
            try:
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                opt.step()
                monitor.step(loss)
                opt.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert not monitor.aside


def test_hooks_are_gone_after_closing():
    net = make()
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    monitor = SignalMonitor(net, None)
    train(net, 2, monitor=monitor)
    monitor.close()
    monitor.close()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == before
    train(net, 2, monitor=monitor)
    assert monitor.steps == 2


class TestDeadUnits:
    def net(self):
        net = make(depth=1)
        with torch.no_grad():
            net[0].bias[:5] = -1e6  # 5 of 12 units can never fire
        return net

    def test_dead_only_after_the_whole_window(self):
        net, records = self.net(), []
        with SignalMonitor(net, None, every=1, window=3, sinks=[records.append]):
            train(net, 5)
        assert [record.dead["1"] for record in records] == pytest.approx([0, 0, 5 / 12, 5 / 12, 5 / 12])

    def test_half_zeros_are_healthy(self):
        net, records = make(), []
        with SignalMonitor(net, None, every=1, window=2, sinks=[records.append]):
            train(net, 4)
        assert 0.3 < records[-1].layers[1].activation.share_zero < 0.7
        assert records[-1].dead == {"1": 0.0, "3": 0.0, "5": 0.0}

    def test_a_unit_that_fires_once_starts_anew(self):
        net, records = self.net(), []
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        with SignalMonitor(net, None, every=1, window=2, sinks=[records.append]):
            for step, (x, y) in enumerate(batches(4)):
                with torch.no_grad():
                    net[0].bias[:5] = 1e3 if step == 2 else -1e6
                opt.zero_grad()
                F.cross_entropy(net(x), y).backward()
                opt.step()
        assert [record.dead["1"] for record in records] == pytest.approx([0, 5 / 12, 0, 0])

    def test_channels_are_the_units_of_a_convolution(self):
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
        with torch.no_grad():
            net[0].bias[0] = -1e6
        records = []
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        with SignalMonitor(net, None, every=1, window=1, sinks=[records.append]):
            net(torch.randn(8, 1, 4, 4, generator=seeded())).sum().backward()
            opt.step()
        assert records[0].dead["1"] == pytest.approx(1 / 6)

    def test_a_signed_column_that_cancels_is_not_dead(self):
        net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1))
        records = []
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        with SignalMonitor(net, None, every=1, window=1, sinks=[records.append]):
            net(torch.tensor([[1.0], [-1.0]])).sum().backward()
            opt.step()
        assert records[0].dead == {"1": 0.0}

    def test_a_unit_that_works_for_the_last_sample_only_is_not_dead(self):
        net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        x = -torch.ones(40, 1)
        x[-1] = 1.0  # unit 0 is zero for the first 39 samples
        records = []
        opt = torch.optim.SGD(net.parameters(), lr=0.0)
        with SignalMonitor(net, None, every=1, window=1, sinks=[records.append]):
            net(x).sum().backward()
            opt.step()
        assert records[0].dead == {"1": 0.0}

    def test_saturated_units(self):
        net = make(depth=1, activation=nn.Tanh)
        with torch.no_grad():
            net[0].bias[:3] = 1e3
        records = []
        with SignalMonitor(net, None, every=1, window=2, sinks=[records.append]):
            train(net, 3)
        assert [record.saturated["1"] for record in records] == pytest.approx([0, 3 / 12, 3 / 12])


def noise_after(steps, gradients):
    """The monitor's estimate for a weight whose gradient is set by hand."""
    net, records = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)), []
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        for step in range(steps):
            net(torch.ones(1, 16)).sum().backward()
            net[0].weight.grad = gradients(step)
            opt.step()
    return records[-1].gradient_noise["0.weight"]


def test_gradient_noise_of_known_mixtures():
    """Share of noise σ²/(μ² + σ²): 0 for a constant gradient, 1 for pure noise, 1/2 for equal parts."""
    constant = torch.randn(16, 16, generator=seeded(5))
    noise = seeded(6)
    assert noise_after(30, lambda step: constant.clone()) == pytest.approx(0.0, abs=1e-6)
    # 256 entries over about 10 steps: the share is known to about 1/√256 = 6 %.
    assert noise_after(60, lambda step: torch.randn(16, 16, generator=noise)) == pytest.approx(1.0, abs=0.1)
    mixed = noise_after(60, lambda step: constant + torch.randn(16, 16, generator=noise))
    assert mixed == pytest.approx(0.5, abs=0.1)


class TestAlerts:
    def test_a_loss_at_chance(self):
        net = make(depth=1)
        with torch.no_grad():
            net[3].weight.zero_()
            net[3].bias.zero_()
        with SignalMonitor(net, None, every=10) as monitor:
            train(net, 140, monitor=monitor, lr=0.0)
        (alert,) = [alert for alert in monitor.alerts if alert.kind == "chance"]
        assert alert.step == 100
        assert "ln 4 = 1.386, what guessing among 4 classes costs" in alert.text

    def test_non_finite_loss_at_an_unlogged_step(self):
        net = make(depth=1)
        with SignalMonitor(net, None, every=100) as monitor:
            opt = torch.optim.SGD(net.parameters(), lr=0.1)
            for step, (x, y) in enumerate(batches(8)):
                opt.zero_grad()
                loss = F.cross_entropy(net(x * (math.inf if step == 5 else 1)), y)
                loss.backward()
                opt.step()
                monitor.step(loss)
        assert [(alert.step, alert.kind) for alert in monitor.alerts] == [(5, "non-finite")]

    @pytest.mark.parametrize(
        ("where", "layer", "words"),
        [("weight", "2", "the weights of 2 hold"), ("activation", "2", "begin in the activations of 2, from finite")],
    )
    def test_the_layer_where_non_finite_values_begin(self, where, layer, words):
        net = make()
        if where == "weight":
            with torch.no_grad():
                net[2].weight[0, 0] = math.nan
        else:
            with torch.no_grad():
                net[2].bias[0] = math.inf
        with SignalMonitor(net, None, every=1) as monitor:
            train(net, 1)
        assert [(alert.step, alert.layer) for alert in monitor.alerts] == [(0, layer)]
        assert words in str(monitor.alerts[0])

    def test_the_gradient_where_non_finite_values_begin(self):
        class Root(nn.Module):
            def forward(self, x):
                return x + (0 * x).sqrt()  # 0 · ∞ in the backward pass

        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Root(), nn.Linear(4, 2))
        with SignalMonitor(net, None, every=1) as monitor:
            opt = torch.optim.SGD(net.parameters(), lr=0.1)
            net(torch.randn(32, 4, generator=seeded())).square().sum().backward()
            opt.step()
        assert monitor.alerts[0].layer == "1"
        assert "in the gradient that arrives at 1, from finite activations" in monitor.alerts[0].text

    def test_updates_out_of_range(self):
        net = make(depth=1)
        with SignalMonitor(net, None, every=1) as monitor:
            train(net, 6, lr=100.0)
        assert any(alert.kind == "update too large" and "lower the rate" in alert.text for alert in monitor.alerts)

    def test_nothing_to_say_of_a_healthy_run(self):
        net = make()
        with SignalMonitor(net, None, every=1) as monitor:
            train(net, 20, monitor=monitor, lr=0.01)
        assert monitor.alerts == []


class TestNeverBreaksTraining:
    def test_a_log_directory_that_cannot_be_written(self, tmp_path):
        blocked = tmp_path / "file"
        blocked.write_text("")
        net, plain = make(), make()
        monitor = SignalMonitor(net, blocked / "logs", every=1)
        words = r"stopped at training step \d, training goes on without it: NotADirectory"
        with pytest.warns(RuntimeWarning, match=words):
            losses = watched(net, monitor)
        assert losses == train(plain)
        assert monitor.aside

    def test_a_sink_that_raises_as_on_a_full_disk(self):
        def full(record):
            raise OSError(28, "No space left on device")

        net = make()
        with pytest.warns(RuntimeWarning, match="No space left on device") as caught:
            losses = watched(net, SignalMonitor(net, None, every=1, sinks=[full]))
        assert len([w for w in caught if "SignalMonitor" in str(w.message)]) == 1
        assert len(losses) == 6
        assert all(not m._forward_hooks for m in net.modules())

    @pytest.mark.parametrize("where", ["measure", "gradient"])
    def test_a_fault_inside_a_hook(self, monkeypatch, where, way):
        name, calls = "output" if where == "measure" else "gradient", []
        real = getattr(way, name)

        def faulty(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError("planted")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(way, name, faulty)
        net, plain = make(), make()
        with pytest.warns(RuntimeWarning, match="MemoryError: planted"):
            losses = watched(net, SignalMonitor(net, None, every=1))
        assert losses == train(plain)

    def test_a_users_error_passes_through(self):
        net = make()
        with pytest.raises(ZeroDivisionError), SignalMonitor(net, None, every=1):
            train(net, 1 // 0)
        assert all(not m._forward_hooks for m in net.modules())

    def test_a_forward_that_raises_leaves_the_monitor_working(self):
        net, records = make(), []
        with SignalMonitor(net, None, every=1, sinks=[records.append]):
            with pytest.raises(RuntimeError):
                net(torch.ones(2, 5))
            train(net, 2)
        assert [len(record.layers) for record in records] == [8, 8]


class TestCompiled:
    @pytest.fixture(autouse=True)
    def _reset(self):
        yield
        torch.compiler.set_stance("default")
        torch._dynamo.reset()

    def loop(self, net, compiled, **kwargs):
        records = []
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        with SignalMonitor(compiled, None, every=2, sinks=[records.append], **kwargs) as monitor:
            for x, y in batches(4):
                opt.zero_grad()
                F.cross_entropy(compiled(x), y).backward()
                opt.step()
        return records, monitor

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_compiled_code_is_detected_and_the_remedy_named(self, when):
        net = make()
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        if when == "after":
            compiled(torch.ones(16, 12))
        with pytest.warns(RuntimeWarning, match=r"saw no module .* hooks do not run in compiled code.*eager=True"):
            records, monitor = self.loop(net, compiled)
        assert records == []
        assert not monitor.aside

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_measured_steps_can_be_run_uncompiled(self, when):
        net = make()
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        if when == "after":
            compiled(torch.ones(16, 12))
        records, _ = self.loop(net, compiled, eager=True)
        assert [(record.step, len(record.layers)) for record in records] == [(0, 8), (2, 8)]


def test_gradients_are_reported_unscaled():
    """Under GradScaler the gradients of the activations are 1024 times too large until divided."""
    records = {}
    for scale in (None, 1024.0):
        net, records[scale] = make(), []
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        torch.manual_seed(0)
        with SignalMonitor(net, None, every=1, scaler=scaler, sinks=[records[scale].append]):
            for x, y in batches(2):
                opt.zero_grad()
                scaler.scale(F.cross_entropy(net(x), y)).backward()
                scaler.step(opt)
                scaler.update()
    for plain, scaled in zip(records[None], records[1024.0], strict=True):
        for a, b in zip(plain.layers, scaled.layers, strict=True):
            if a.weight_gradient:
                assert b.gradient.rms == pytest.approx(a.gradient.rms, rel=1e-6)
                assert b.weight_gradient.rms == pytest.approx(a.weight_gradient.rms, rel=1e-5)


def test_a_step_skipped_by_the_scaler_is_measured_when_it_is_made():
    net, records = make(), []
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, scaler=scaler, sinks=[records.append]):
        for index, (x, y) in enumerate(batches(3)):
            opt.zero_grad()
            scaler.scale(F.cross_entropy(net(x), y) * (math.inf if index == 0 else 1)).backward()
            scaler.step(opt)
            scaler.update()
    assert [record.step for record in records] == [0, 1]
    gradients = [layer.gradient for record in records for layer in record.layers if layer.role == "weight"]
    assert [gradient.nonfinite for gradient in gradients] == [0] * 8


def test_json_lines_and_rows(tmp_path):
    net = make()
    with SignalMonitor(net, None, every=2, sinks=[JsonLines(tmp_path / "deep" / "log.jsonl")]) as monitor:
        train(net, 4, monitor=monitor)
    lines = [json.loads(line) for line in (tmp_path / "deep" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["layer"]) for line in lines[::8]] == [(0, "0"), (2, "0")]
    assert lines[0]["activation_rms"] > 0
    assert lines[0]["update_ratio"] > 0
    assert monitor.last is not None
    assert monitor.last.rows()[0].keys() == lines[0].keys()


def test_the_report_of_the_last_step():
    net = make(depth=30)
    initialize_(net, "small", generator=seeded())
    monitor = SignalMonitor(net, None, every=1)
    assert monitor.report is None
    train(net, 1, monitor=monitor)
    assert monitor.report is not None
    assert monitor.report.verdict.forward == "vanishing"
    monitor.close()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SignalMonitor(None, None), TypeError, r"model must be a torch.nn.Module, got NoneType None"),
        (lambda: SignalMonitor(nn.ReLU(), None), ValueError, r"must have parameters, got ReLU with none"),
        (
            lambda: SignalMonitor(make(), None, every=0),
            ValueError,
            r"every must be a whole number .* got 0; try every=10",
        ),
        (lambda: SignalMonitor(make(), None, window=2.5), ValueError, r"window must be a whole number .* got 2.5"),
        (lambda: SignalMonitor(make(), None, detail=0), ValueError, r"detail must be a whole number .* got 0"),
    ],
)
def test_errors_by_their_wording(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_no_warning_in_a_plain_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = make()
        with SignalMonitor(net, tmp_path, every=1, hparams={"lr": 0.1}) as monitor:
            train(net, 3, monitor=monitor)


class TestCompiledMeasuring:
    def test_asked_for_without_numba(self, monkeypatch):
        monkeypatch.setattr(monitor_arguments, "_has_numba", lambda: False)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'torchnotes\[fast\]'"):
            SignalMonitor(make(), None, compiled=True)

    def test_no_answer_to_yes_or_no(self):
        with pytest.raises(TypeError, match="compiled must be True, False or None, got"):
            SignalMonitor(make(), None, compiled="fast")

    def test_a_numba_that_does_not_work(self, monkeypatch):
        """One that does not go with the installed NumPy raises when it is imported."""
        monkeypatch.setattr(monitor_arguments, "_has_numba", lambda: True)
        monkeypatch.setitem(sys.modules, "torchnotes.diagnostics._kernels", None)
        with pytest.warns(RuntimeWarning, match="numba is installed but does not work here.*measures without it"):
            assert SignalMonitor(make(), None).compiled is False
        with pytest.raises(ImportError):
            SignalMonitor(make(), None, compiled=True)

    def test_it_is_said_which_way_it_is(self, way):
        assert SignalMonitor(make(), None).compiled is (way is Compiled)
        assert SignalMonitor(make(), None, compiled=False).compiled is False

    def test_without_numba_it_is_not_imported(self):
        """Neither by the package, nor by a monitor that does without."""
        code = (
            "import sys, torch, torchnotes.diagnostics as d\n"
            "net = torch.nn.Linear(2, 2)\n"
            "monitor = d.SignalMonitor(net, None, every=1, compiled=False)\n"
            "net(torch.ones(3, 2)).sum().backward()\n"
            "monitor.step()\n"
            "monitor.close()\n"
            "assert monitor.last is not None\n"
            "assert 'numba' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_the_numbers_are_those_without(self, monkeypatch):
        """Layers, channels and transformers' tokens, all kinds of flat ends: the two ways against each other."""
        monkeypatch.setattr(monitor_arguments, "_has_numba", lambda: True)
        nets = [
            (make(activation=nn.Tanh), (16, 12)),
            (make(activation=nn.ReLU6), (16, 12)),
            (
                nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Sigmoid(), nn.Flatten()),
                (4, 3, 9, 9),
            ),
            (nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 3), nn.Hardtanh()), (5, 8, 6)),
        ]
        for net, shape in nets:
            found = []
            with torch.no_grad():
                net[0].bias.add_(torch.linspace(-4, 4, len(net[0].bias)))  # some units at an end for every sample
            for compiled in (True, False):
                records, own = [], copy.deepcopy(net)
                optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
                with SignalMonitor(own, None, every=1, window=2, sinks=[records.append], compiled=compiled):
                    for step in range(3):
                        torch.manual_seed(step)
                        optimizer.zero_grad()
                        own(torch.randn(shape)).square().mean().backward()
                        optimizer.step()
                found.append(records)
            for one, other in zip(*found, strict=True):
                assert one.dead == other.dead
                assert one.saturated == other.saturated
                assert one.update_ratio == pytest.approx(other.update_ratio, rel=1e-6)
                assert one.gradient_noise == pytest.approx(other.gradient_noise, rel=1e-6)
                for a, b in zip(one.layers, other.layers, strict=True):
                    for part in ("activation", "gradient", "weight", "weight_gradient", "bias"):
                        x, y = getattr(a, part), getattr(b, part)
                        assert (x is None) == (y is None)
                        for field in ("rms", "mean", "std", "max_abs", "share_zero", "share_saturated", "nonfinite"):
                            known = None if y is None else getattr(y, field)
                            if known is not None and not math.isnan(known):  # NaN: not taken by that way
                                # A variance as a difference of squares loses as many digits as the mean is larger.
                                slack = ROUNDING * y.rms * (y.rms / y.std if field == "std" and y.std else 1)
                                assert getattr(x, field) == pytest.approx(known, rel=2e-6, abs=slack), (part, field)
            assert any(share > 0 for share in (*found[0][-1].dead.values(), *found[0][-1].saturated.values()))


def test_a_sparse_gradient_has_other_values_at_every_step():
    net, records = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Flatten(), nn.Linear(8, 4)), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        for rows in (50, 1, 30, 7, 2):
            optimizer.zero_grad()
            F.cross_entropy(net(torch.arange(rows)[:, None]), torch.zeros(rows, dtype=torch.long)).backward()
            optimizer.step()
    assert not monitor.aside
    assert len(records) == 5
    assert all(record.update_ratio["0.weight"] > 0 for record in records)


class TestHandingOn:
    """Without sinks of the user's, measured steps wait for each other; whoever looks is told of all of them."""

    def monitor(self, net, path, **kwargs):
        monitor = SignalMonitor(net, path, every=1, **kwargs)
        handed = []
        real = monitor._delivery._hand_on
        monitor._delivery._hand_on = lambda pending: handed.append(pending.step) or real(pending)
        return monitor, handed

    def test_some_together(self, tmp_path):
        # The last is still under way when those before are passed on.
        for steps, known in ((TOGETHER, 0), (TOGETHER + 1, TOGETHER)):
            net = make()
            monitor, handed = self.monitor(net, tmp_path / str(steps))
            train(net, steps, monitor=monitor)
            assert handed == list(range(known))
            monitor.close()
            assert handed == list(range(steps))

    @pytest.mark.parametrize("what", ["last", "report", "alerts"])
    def test_whoever_looks_sees_all(self, tmp_path, what):
        net = make()
        monitor, handed = self.monitor(net, tmp_path)
        train(net, 3, monitor=monitor)
        getattr(monitor, what)
        assert handed == ([0, 1, 2] if what == "report" else [0, 1])
        monitor.close()

    def test_sinks_are_not_kept_waiting(self):
        net, records = make(), []
        monitor, handed = self.monitor(net, None, sinks=[records.append])
        train(net, 3, monitor=monitor)
        assert handed == [0, 1]
        monitor.close()

    def test_none_waits_for_long(self, tmp_path, monkeypatch):
        from torchnotes.diagnostics import delivery

        monkeypatch.setattr(delivery, "AT_LATEST", 0.0)
        net = make()
        monitor, handed = self.monitor(net, tmp_path)
        train(net, 3, monitor=monitor)
        assert handed == [0, 1]
        monitor.close()

    def test_each_keeps_its_time(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        net = make()
        monitor, _ = self.monitor(net, tmp_path)
        opt, spans = torch.optim.SGD(net.parameters(), lr=0.1), []
        for x, y in batches(3):
            start = time.time()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            monitor.step(loss)
            spans.append((start, time.time()))
        monitor.close()
        events = EventAccumulator(str(tmp_path)).Reload()
        tag = next(tag for tag in events.Tags()["scalars"] if tag.endswith("/loss"))
        times = [event.wall_time for event in events.Scalars(tag)]
        assert all(start <= when <= end for when, (start, end) in zip(times, spans, strict=True))
