"""What a model calls as functions has its rows beside training too; and the mode that sees them is gone in time."""

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from torchnotes.diagnostics import SignalMonitor, function_rows, monitor_arguments, probe
from torchnotes.diagnostics.history import StepRecord
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.lean_compiled import Compiled

WIDTH = 12


@pytest.fixture(params=[Compiled, Lean], autouse=True)
def way(request, monkeypatch):
    """Everything here holds with numba and without."""
    monkeypatch.setattr(monitor_arguments, "_has_numba", lambda: request.param is Compiled)
    return request.param


@pytest.fixture(autouse=True)
def _nothing_stays():
    """Whatever happens, no mode is left on."""
    yield
    assert _get_current_function_mode_stack() == []


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Functional(nn.Module):
    """A net of functions alone: products in each form, activations, normalisation, dropout; one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "c", "d"):
            value = torch.randn(WIDTH, WIDTH, generator=seeded(ord(name))) * (2 / WIDTH) ** 0.5
            setattr(self, name, nn.Parameter(value))
        self.bias = nn.Parameter(0.1 * torch.randn(WIDTH, generator=seeded(9)))
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.a, self.bias))
        x = torch.tanh(x @ self.b.T)
        x = F.layer_norm(F.gelu(x @ self.c), (WIDTH,))
        x = F.relu(F.linear(x, self.d), inplace=True)
        return F.linear(F.dropout(x, self.p), self.d)


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, F.relu, batch_first=True, norm_first=norm_first)
        self.stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stack(x).mean(1))


NETS = {
    "functions": (Functional, (16, WIDTH)),
    "encoder": (Encoder, (4, 5, WIDTH)),
    "pre-norm": (lambda: Encoder(norm_first=True), (4, 5, WIDTH)),
}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def train(net, shape, steps=4, *, monitor=None, opt=None):
    opt, generator, losses = opt or sgd(net), seeded(1), []
    torch.manual_seed(3)
    for _ in range(steps):
        opt.zero_grad()
        loss = net(torch.randn(shape, generator=generator)).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
        if monitor is not None:
            monitor.step(loss)
    return losses


def mean_square(output: Tensor) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("name", NETS)
def test_the_rows_are_the_probes(name: str) -> None:
    make, shape = NETS[name]
    net, records = make(), []
    expected = probe(net, torch.randn(shape, generator=seeded(1)), loss=mean_square)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        train(net, shape, 1)
    assert not monitor.aside
    found = records[0].layers
    assert any(layer.label.endswith("relu()") for layer in found)
    one, other = (
        [(x.label, x.kind, x.role, x.depth, x.shape, x.fan_in, x.fan_out) for x in layers]
        for layers in (found, expected.layers)
    )
    assert one == other
    for one, other in zip(found, expected.layers, strict=True):
        for part in ("activation", "gradient", "weight", "weight_gradient", "bias"):
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None) == (b is None), (one.label, part)
            if a is not None:
                # At most 480 values summed in float32.
                assert (a.rms, a.max_abs) == pytest.approx((b.rms, b.max_abs), rel=1e-6)
                assert (a.count, a.nonfinite) == (b.count, b.nonfinite)
        if one.role == "activation":
            a, b = one.activation, other.activation
            assert a.share_zero == pytest.approx(b.share_zero)
            assert a.share_saturated == pytest.approx(b.share_saturated)
    growth = records[0].forward_growth, records[0].backward_growth
    assert growth == pytest.approx((expected.forward_growth, expected.backward_growth), rel=1e-6)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("detail", [1, 2])
def test_training_is_bit_identical_and_each_step_has_the_rows(name: str, detail: int, tmp_path) -> None:
    make, shape = NETS[name]
    plain, net, records = make(), make(), []
    for one in (plain, net):
        one.p = 0.3  # so that the random state counts
    expected = train(plain, shape)
    with SignalMonitor(net, tmp_path, every=1, detail=detail, sinks=[records.append]) as monitor:
        assert train(net, shape, monitor=monitor) == expected
    assert not monitor.aside
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), net.parameters(), strict=True))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), net.parameters(), strict=True))
    labels = [[layer.label for layer in record.layers] for record in records]
    weights = [layer.label for layer in records[0].layers if layer.role == "weight"]
    assert labels == [labels[0] if record.full else weights for record in records]
    assert [record.full for record in records] == [step % detail == 0 for step in range(4)]


def test_dead_units_behind_a_function() -> None:
    net, records = Functional(), []
    with torch.no_grad():
        net.bias[:5] = -1e6  # 5 of 12 units can never fire
    with SignalMonitor(net, None, every=1, window=3, sinks=[records.append]):
        train(net, (16, WIDTH))
    assert [record.dead["relu()"] for record in records] == pytest.approx([0, 0, 5 / 12, 5 / 12])
    assert records[-1].rows()[1]["dead_units"] == pytest.approx(5 / 12)


def test_updates_are_in_the_row_of_the_parameter() -> None:
    net, records = Functional(), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        train(net, (16, WIDTH), 2)
    rows = {row["layer"]: row for row in records[0].rows()}
    weight = next(layer for layer in records[0].layers if layer.label == "b")
    # SGD: Δw = −α g; Δw is taken from weights rounded to float32, 6e-8 of w against a Δw of 1e-3 w or so.
    expected = 0.1 * weight.weight_gradient.rms / weight.weight.rms
    assert rows["b"]["update_ratio"] == pytest.approx(expected, rel=1e-2)


class Raises(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.inner, self.error = Functional(), error
        self.when = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x))
        if self.when:
            raise self.error("the user's own")
        return x


def test_the_mode_is_off_when_the_forward_has_returned() -> None:
    net = Functional()
    with SignalMonitor(net, None, every=1) as monitor:
        for _ in range(2):
            net(torch.ones(3, WIDTH))
            assert _get_current_function_mode_stack() == []
    assert entered(monitor) == 2


def test_the_mode_is_off_after_a_forward_that_raised() -> None:
    net, records = Raises(ArithmeticError), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        net.when = True
        with pytest.raises(ArithmeticError, match="the user's own"):
            net(torch.ones(3, WIDTH))
        assert _get_current_function_mode_stack() == []
        net.when = False
        train(net, (16, WIDTH), 2)
    assert not monitor.aside
    assert [sum(layer.name == "inner.a" for layer in record.layers) for record in records] == [1, 1]


def test_an_interrupt_leaves_it_on_until_the_next_pass_or_the_end() -> None:
    """No hook runs at a KeyboardInterrupt."""
    net, records = Raises(KeyboardInterrupt), []
    opt = sgd(net)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        for _ in range(2):
            net.when = True
            with pytest.raises(KeyboardInterrupt):
                net(torch.ones(3, WIDTH))
            assert len(_get_current_function_mode_stack()) == 1
            with Passing():
                net.when = False
                train(net, (16, WIDTH), 1, opt=opt)
                assert len(_get_current_function_mode_stack()) == 1
            assert _get_current_function_mode_stack() == []
        net.when = True
        with pytest.raises(KeyboardInterrupt):
            net(torch.ones(3, WIDTH))
    assert [sum(layer.name == "inner.a" for layer in record.layers) for record in records] == [1, 1]


class Passing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def entered(monitor: SignalMonitor) -> int:
    return monitor._taker._functions.entered


def one_by_one(net: nn.Module, steps: int, **arguments: Any) -> Iterator[SignalMonitor]:
    """Train beside a monitor, and yield it after each step."""
    opt = sgd(net)
    with SignalMonitor(net, None, **arguments) as monitor:
        for _ in range(steps):
            train(net, (16, WIDTH), 1, opt=opt)
            yield monitor


def test_a_net_of_modules_is_looked_at_once() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4))
    counts = []
    for monitor in one_by_one(net, 12, every=1):
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
        counts.append((entered(monitor), hooks))
    # Between the first pass and the 10th only the capture's hooks, one a module, and the monitor's own on the model.
    assert counts[:8] == [(1, 6)] * 8
    assert [count for count, _ in counts[8:]] == [1, 2, 2, 2]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_only_measured_training_passes_run_under_it() -> None:
    net, counts = Functional(), []
    for monitor in one_by_one(net, 7, every=3):
        with torch.no_grad():
            net(torch.ones(3, WIDTH))
        counts.append(entered(monitor))
        assert bool(net._forward_hooks) == (monitor.steps % 3 == 0)
    assert counts == [1, 1, 1, 2, 2, 2, 3]


def test_a_net_that_calls_its_first_function_later_is_seen_at_the_tenth_pass() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(WIDTH, WIDTH), False

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(x)) if self.calls else self.layer(x)

    net, records = Later(), []
    opt = sgd(net)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        train(net, (16, WIDTH), 2, opt=opt)
        net.calls = True
        train(net, (16, WIDTH), 10, opt=opt)
    assert [any(layer.name == "relu()" for layer in record.layers) for record in records] == [False] * 9 + [True] * 3


def trained_alike(plain: nn.Module) -> list[StepRecord]:
    """Two steps with and without a monitor, alike to the last bit; its records."""
    net, records = copy.deepcopy(plain), []
    expected = train(plain, (16, WIDTH), 2)
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        assert train(net, (16, WIDTH), 2) == expected
    assert not monitor.aside
    return records


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_functions_are_counted_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(WIDTH, WIDTH), Functional()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(checkpoint(self.inner, self.first(x), use_reentrant=reentrant))

    records = trained_alike(Checkpointed())
    labels = [layer.label for layer in records[1].layers]
    # With re-entry the segment runs without gradients, where the monitor sees no module either.
    assert labels.count("inner.a") == (not reentrant)
    assert labels[-1] == "relu()"
    assert all(layer.gradient is not None for layer in records[1].layers if layer.role == "weight")


def test_a_segment_run_again_inside_the_forward_is_not_counted() -> None:
    class Differentiates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), Functional())

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = checkpoint(self.inner, x, use_reentrant=False)
            (g,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            return self.inner(y + g)

    records = trained_alike(Differentiates())
    labels = [layer.label for layer in records[1].layers if layer.role == "weight"]
    once = ["inner.0", "inner.1.a", "inner.1.b", "inner.1.c", "inner.1.d", "inner.1.d#1"]
    assert labels == [
        "first",
        *once,
        "inner.0#1",
        "inner.1.a#1",
        "inner.1.b#1",
        "inner.1.c#1",
        "inner.1.d#2",
        "inner.1.d#3",
    ]


def test_accumulated_passes_do_not_add_up() -> None:
    net, records = Functional(), []
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        for size in (4, 7, 3):
            net(torch.randn(size, WIDTH, generator=seeded())).square().mean().backward()
        opt.step()
    (record,) = records
    labels = [layer.label for layer in record.layers if layer.role in ("weight", "activation")]
    assert labels == ["a", "relu()", "b", "tanh()", "c", "gelu()", "d", "relu()#1", "d#1"]
    assert record.layers[0].shape == (3, WIDTH)
    assert record.layers[0].weight_gradient.rms == pytest.approx(net.a.grad.square().mean().sqrt().item())


def test_what_is_made_of_weights_alone_is_no_activation() -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=seeded()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ F.softplus(self.w))

    net, records = Positive(), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        train(net, (16, WIDTH), 1)
    assert [layer.label for layer in records[0].layers] == ["tanh()"]


def test_random_functions_are_not_tried_out() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.rrelu(self.layer(x), training=True), 0.3)

    plain = Random()
    net = copy.deepcopy(plain)
    expected = train(plain, (16, WIDTH))
    with SignalMonitor(net, None, every=1):
        assert train(net, (16, WIDTH)) == expected


@pytest.mark.parametrize("where", ["_made", "_is_signal", "_returned", "_enter"])
def test_a_fault_of_ours_makes_the_monitor_step_aside(where: str, monkeypatch) -> None:
    calls = []
    real = getattr(function_rows.FunctionRows, where)

    def faulty(self, *args):
        calls.append(1)
        if len(calls) == (1 if where == "_enter" else 3):
            raise MemoryError("planted")
        return real(self, *args)

    monkeypatch.setattr(function_rows.FunctionRows, where, faulty)
    make, shape = NETS["encoder"]
    plain, net = make(), make()
    monitor = SignalMonitor(net, None, every=1)
    with pytest.warns(RuntimeWarning, match="MemoryError: planted"):
        losses = train(net, shape)
    assert losses == train(plain, shape)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    monitor.close()


def test_a_part_compiled_beforehand_is_left_alone() -> None:
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(Functional(), backend=backend, fullgraph=True)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.inner(x))

    net = Half()
    try:
        with SignalMonitor(net, None, every=1) as monitor:
            train(net, (16, WIDTH), 3)
        assert not monitor.aside
        assert (entered(monitor), len(graphs)) == (0, 1)
    finally:
        torch._dynamo.reset()


def test_a_function_compiled_beforehand_goes_on_working() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return 2 * F.relu(F.linear(x, w))

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=seeded()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(twice(x, self.w))

    net, records = Half(), []
    plain = copy.deepcopy(net)
    try:
        expected = train(plain, (16, WIDTH))
        with SignalMonitor(net, None, every=2, sinks=[records.append]) as monitor:
            assert train(net, (16, WIDTH)) == expected
        assert not monitor.aside
        # What runs inside of compiled code has no row.
        assert [[layer.label for layer in record.layers] for record in records] == [["tanh()"]] * 2
    finally:
        torch._dynamo.reset()


def test_another_thread_is_not_seen() -> None:
    class Threaded(Functional):
        def forward(self, x: Tensor) -> Tensor:
            other = threading.Thread(target=lambda: F.relu(x))
            other.start()
            other.join()
            return super().forward(x)

    net, records = Threaded(), []
    with SignalMonitor(net, None, every=1, sinks=[records.append]):
        train(net, (16, WIDTH), 1)
    assert [layer.label for layer in records[0].layers].count("relu()") == 1
    assert not math.isnan(records[0].layers[0].activation.rms)
