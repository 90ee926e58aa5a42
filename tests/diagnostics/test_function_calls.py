"""Activations that a model calls as functions get the rows, the blame and the cure that modules get."""

import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchnotes import probe
from torchnotes.diagnostics.theory_lookup import FunctionOfOne

WIDTH, DEPTH = 64, 50


class Called(nn.Module):
    """A deep net whose activation is a function call."""

    def __init__(self, activation: Callable[[Tensor], Tensor], std: float, depth: int = DEPTH) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(depth))
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


def as_modules(net: Called, activation: nn.Module) -> nn.Sequential:
    """The same net with a module after each layer."""
    return nn.Sequential(*(m for layer in net.layers for m in (layer, activation.__class__(**vars_of(activation)))))


def vars_of(activation: nn.Module) -> dict[str, float]:
    return {"negative_slope": activation.negative_slope} if isinstance(activation, nn.LeakyReLU) else {}


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (F.relu, nn.ReLU()),
        (torch.relu, nn.ReLU()),
        (Tensor.relu, nn.ReLU()),
        (lambda x: F.relu(x, inplace=True), nn.ReLU()),
        (torch.tanh, nn.Tanh()),
        (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
        (torch.sigmoid, nn.Sigmoid()),
        (F.gelu, nn.GELU()),
    ],
    ids=["F.relu", "torch.relu", "Tensor.relu", "in place", "tanh", "leaky 0.2", "sigmoid", "gelu"],
)
def test_a_call_is_measured_as_the_module_would_be(
    function: Callable[[Tensor], Tensor], module: nn.Module, batch: Tensor
) -> None:
    net = Called(function, std=WIDTH**-0.5, depth=4)
    called, twin = probe(net, batch), probe(as_modules(net, module), batch)
    assert [layer.role for layer in called.layers] == [layer.role for layer in twin.layers]
    assert [layer.activation for layer in called.layers] == [layer.activation for layer in twin.layers]
    assert [layer.gradient for layer in called.layers] == [layer.gradient for layer in twin.layers]
    assert called.theory is not None
    assert twin.theory is not None
    expected = [entry.forward for entry in called.theory.modules if entry.name]
    assert expected == [entry.forward for entry in twin.theory.modules if entry.name]


def test_the_cure_is_that_of_the_same_net_of_modules(batch: Tensor) -> None:
    net = Called(F.relu, std=WIDTH**-0.5)
    report, twin = probe(net, batch), probe(as_modules(net, nn.ReLU()), batch)
    assert "weights at variance 1/n around relu halve the second moment" in report.prescription
    assert report.prescription == twin.prescription.replace("ReLU", "relu").replace("`2`", "`layers.1`")
    report.apply(net)
    assert probe(net, batch).healthy


def test_labels_say_who_called_and_how_often(batch: Tensor) -> None:
    net = nn.Sequential(Called(F.relu, std=0.1, depth=2), Called(torch.tanh, std=0.1, depth=1))
    labels = [layer.label for layer in probe(net, batch).layers if layer.role == "activation"]
    assert labels == ["0.relu()", "0.relu()#1", "1.tanh()"]


def test_calls_inside_a_module_that_is_an_activation_are_not_counted_twice(batch: Tensor) -> None:
    layers = probe(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)), batch).layers
    assert [layer.label for layer in layers] == ["0", "1", "2"]


def test_other_elementwise_functions_are_no_activations(batch: Tensor) -> None:
    layers = probe(Called(lambda x: (2 * x).exp().clamp(max=3), std=0.1, depth=2), batch).layers
    assert [layer.role for layer in layers if layer.name] == ["weight", "weight"]


def test_a_report_holds_on_to_no_activation() -> None:
    x = torch.randn(8, WIDTH)
    inputs: list[weakref.ref[Tensor]] = []

    def activation(z: Tensor) -> Tensor:
        inputs.append(weakref.ref(z))
        return F.leaky_relu(z, negative_slope=0.2)

    report = probe(Called(activation, std=0.1, depth=2), x)
    gc.collect()
    assert len(inputs) == 2
    assert [reference() for reference in inputs] == [None, None]
    copied = pickle.loads(pickle.dumps(report.layers))
    assert copied == report.layers


def test_a_call_is_written_with_what_it_was_given() -> None:
    z = torch.ones(2)
    called = FunctionOfOne(F.leaky_relu, (z, 0.2), {"inplace": False}, z)
    assert repr(called) == "leaky_relu(z, 0.2, inplace=False)"
    assert torch.equal(called(-z), torch.full((2,), -0.2))
    assert torch.equal(FunctionOfOne(torch.clamp, (), {"input": z, "max": 0.5}, z)(3 * z), torch.full((2,), 0.5))
