"""What is kept of a pass beside training, by either way of measuring: which numbers belong to which pass and tensor."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchnotes.diagnostics import SignalMonitor

WAYS = pytest.mark.parametrize("compiled", [False, True])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(width=8, depth=3, seed=0):
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Watched:
    """A net in training with a monitor on it; ``taken`` are its records."""

    def __init__(self, net, compiled, lr=0.01):
        self.net, self.taken = net, []
        self.optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        self.monitor = SignalMonitor(net, None, every=1, sinks=[self.taken.append], compiled=compiled)

    def step(self, *inputs, loss=lambda output: output.square().mean()):
        self.optimizer.zero_grad()
        total = sum(loss(self.net(x)) for x in inputs)
        total.backward()
        self.optimizer.step()
        self.monitor.step(total)
        return total

    def records(self):
        self.monitor.close()
        return self.taken


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


@WAYS
def test_of_two_passes_before_one_backward_the_last_is_recorded(compiled):
    """The hooks of the first fire in the same backward, some before and some after those of the last."""
    net, x = make(), [torch.randn(5, 8, generator=seeded(i)) * 3**i for i in range(2)]
    outputs, output = [], x[1]
    for layer in net:
        output = layer(output)
        output.retain_grad()
        outputs.append(output)
    (net(x[0]).square().mean() + output.square().mean()).backward()
    wanted = [(rms(z), rms(z.grad)) for z in outputs]
    watched = Watched(net, compiled)
    watched.step(*x)
    layers = watched.records()[0].layers
    assert len(layers) == len(wanted)
    for layer, (forward, backward) in zip(layers, wanted, strict=True):
        assert layer.activation.rms == pytest.approx(forward, rel=1e-6)
        assert layer.gradient.rms == pytest.approx(backward, rel=1e-6)


@WAYS
def test_a_loss_that_is_written_to_later_is_recorded_as_it_was(compiled):
    watched = Watched(make(), compiled)
    loss = watched.step(torch.ones(5, 8))
    before = loss.item()
    with torch.no_grad():
        loss.fill_(-1.0)
    assert watched.records()[0].loss == before


@WAYS
def test_more_calls_and_more_units_than_before(compiled):
    """Room for the numbers grows inside of a pass; what was written before the growth is not lost."""

    class Deepening(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.inner, self.act = nn.Linear(8, 5000), nn.Linear(5000, 8), nn.ReLU()
            self.times = 1

        def forward(self, x):
            for i in range(self.times):
                x = (-1) ** i * self.inner(self.act(self.up(x)))  # other units work from call to call
            return x

    torch.manual_seed(0)
    net = Deepening()
    with torch.no_grad():
        net.up.weight[100:] = 0.0
        net.up.bias[100:] = -1.0  # the last 4,900 units are dead
    watched = Watched(net, compiled, lr=0.0)
    x = torch.randn(6, 8, generator=seeded())
    watched.step(x)
    net.times = 40
    watched.step(x)
    outputs, y = [], x
    with torch.no_grad():
        for i in range(40):
            z = net.up(y)
            outputs += [z, z.relu(), net.inner(z.relu())]
            y = (-1) ** i * outputs[-1]
    _, record = watched.records()
    assert [layer.activation.rms for layer in record.layers[:120]] == pytest.approx([rms(z) for z in outputs], rel=1e-5)
    idle = watched.monitor._taker.units.maps()
    for i in range(1, 40):
        expected, before = ((outputs[3 * j + 1] == 0).all(dim=0).tolist() for j in (i, i - 1))
        assert expected != before
        assert [share > 0 for share in idle[f"act#{i}"]] == expected
        assert sum(expected) >= 4900


@WAYS
def test_shapes_are_those_of_the_step(compiled):
    watched = Watched(make(), compiled)
    for size in (5, 9, 2):
        watched.step(torch.ones(size, 8))
    assert [record.layers[0].shape for record in watched.records()] == [(5, 8), (9, 8), (2, 8)]


class Mixed(nn.Module):
    """A weight that hooks see, the same tied to a second layer, and one that no layer and no known function holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.table = nn.Parameter(torch.randn(40, 50))

    def forward(self, x):
        return self.second(self.first(x)) + torch.einsum("ij->", self.table)


@WAYS
def test_updates_of_weights_that_no_record_holds(compiled):
    """With plain SGD each update is −ηg, of every entry: known without any sample of more than all of them."""
    net, rate = Mixed(), 0.125
    watched = Watched(net, compiled, lr=rate)
    expected = []
    for i in range(3):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        watched.step(torch.randn(5, 8, generator=seeded(i)))
        expected.append({name: rms(p - before[name]) / rms(before[name]) for name, p in net.named_parameters()})
    for record, wanted in zip(watched.records(), expected, strict=True):
        assert set(record.update_ratio) == {"first.weight", "table"}
        assert record.update_ratio["table"] == pytest.approx(wanted["table"], rel=1e-5)
        assert record.update_ratio["first.weight"] == pytest.approx(wanted["first.weight"], rel=1e-5)


@WAYS
def test_a_weight_that_is_replaced_between_steps(compiled):
    net = make()
    watched = Watched(net, compiled, lr=0.125)
    x = torch.randn(5, 8, generator=seeded())
    watched.step(x)
    net[2].weight = nn.Parameter(torch.full((8, 8), 0.5))
    watched.optimizer.add_param_group({"params": [net[2].weight]})
    watched.step(x)
    changed = rms(net[2].weight - 0.5) / 0.5
    net[2].weight.data = torch.full((8, 8), 0.25)
    watched.step(x)
    first, second, third = watched.records()
    assert first.layers[2].weight.rms != 0.5
    assert (second.layers[2].weight.rms, third.layers[2].weight.rms) == (0.5, 0.25)
    assert second.update_ratio["2.weight"] == pytest.approx(changed, rel=1e-5)


class Swapping(nn.Module):
    """Two layers of one shape, in an order that changes; and a tensor that is kept from the pass before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.same = nn.Linear(8, 8), nn.Linear(8, 8), nn.Identity()
        self.kept, self.swap = None, False

    def forward(self, x):
        layers = (self.two, self.one) if self.swap else (self.one, self.two)
        for layer in layers:
            x = layer(x)
        if self.kept is not None:
            x = x + self.same(self.kept)
        self.kept = x
        return x


@WAYS
def test_layers_in_another_order(compiled):
    net = Swapping()
    watched = Watched(net, compiled, lr=0.125)
    expected = []
    for swap in (False, True, False):
        net.swap, net.kept = swap, None
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        watched.step(torch.randn(5, 8, generator=seeded(int(swap))))
        wanted = {name: rms(p - before[name]) / rms(before[name]) for name, p in net.named_parameters()}
        expected.append({name: wanted[name] for name in ("one.weight", "two.weight")})
    for record, wanted in zip(watched.records(), expected, strict=True):
        assert record.update_ratio == pytest.approx(wanted, rel=1e-5)


@WAYS
def test_a_tensor_of_the_pass_before(compiled):
    """It was measured there, as the output of the whole; here it is the output of a module of this pass."""
    net = Swapping()
    watched = Watched(net, compiled, lr=0.0)
    x = torch.randn(5, 8, generator=seeded())
    net(x)
    kept = net.kept
    watched.net(x)
    watched.optimizer.zero_grad()
    net.kept.square().mean().backward()
    watched.optimizer.step()
    watched.monitor.step(0.0)
    names = [layer.name for layer in watched.records()[0].layers]
    assert names[:3] == ["one", "two", "same"]
    assert kept is not net.kept


@WAYS
def test_written_over_without_a_graph(compiled):
    """No new node of the graph, and the same tensor: what the module returns is another signal all the same."""

    class Halve(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                x.mul_(0.5)
            return x

    net = nn.Sequential(nn.Linear(4, 4), Halve())
    watched = Watched(net, compiled)
    watched.step(torch.randn(6, 4, generator=seeded()))
    layers = watched.records()[0].layers
    assert [layer.name for layer in layers] == ["0", "1"]
    assert layers[1].activation.rms == pytest.approx(layers[0].activation.rms / 2, rel=1e-6)


@WAYS
def test_a_broken_weight_and_a_broken_gradient_are_counted(compiled):
    net = make()
    with torch.no_grad():
        net[4].weight[3, 5] = math.nan
    watched = Watched(net, compiled)
    watched.step(torch.ones(5, 8))
    (record,) = watched.records()
    assert record.layers[4].weight.nonfinite == 1
    broken = net[4].weight.grad.isfinite().logical_not().sum().item()
    assert record.layers[4].weight_gradient.nonfinite == broken > 0
    assert record.layers[2].weight.nonfinite == 0
    assert record.layers[2].activation.nonfinite == 0
    assert record.nonfinite > 1 + broken


@WAYS
def test_a_container_is_not_recorded_again_but_what_is_written_over_is(compiled):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), nn.Sequential(nn.Identity()))
    watched = Watched(net, compiled)
    watched.step(torch.randn(6, 4, generator=seeded()))
    (record,) = watched.records()
    assert [layer.name for layer in record.layers] == ["0.0", "0.1"]
    assert record.layers[0].activation.rms > record.layers[1].activation.rms


@WAYS
def test_cross_entropy_beside_a_hook_of_the_users(compiled):
    """A hook that the user sets on an output later goes beside ours."""
    net, seen = make(), []
    watched = Watched(net, compiled)

    def loss(output):
        output.register_hook(lambda gradient: seen.append(rms(gradient)))
        return F.cross_entropy(output, torch.zeros(5, dtype=torch.long))

    watched.step(torch.randn(5, 8, generator=seeded()), loss=loss)
    assert watched.records()[0].layers[-1].gradient.rms == pytest.approx(seen[0], rel=1e-6)
