"""What every layer owes its twin in torch.nn: numbers, state, copies, printing, export."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchnotes.nn as tn


@dataclass(frozen=True)
class Pair:
    name: str
    ours: Callable[[], nn.Module]
    twin: Callable[[], nn.Module]
    features: int = 6


PAIRS = [
    Pair("Linear", lambda: tn.Linear(6, 4), lambda: nn.Linear(6, 4)),
    Pair("Linear without bias", lambda: tn.Linear(6, 4, bias=False), lambda: nn.Linear(6, 4, bias=False)),
    Pair("Sigmoid", tn.Sigmoid, nn.Sigmoid),
    Pair("Tanh", tn.Tanh, nn.Tanh),
    Pair("ReLU", tn.ReLU, nn.ReLU),
    Pair("LeakyReLU", lambda: tn.LeakyReLU(0.2), lambda: nn.LeakyReLU(0.2)),
    Pair("Dropout off", lambda: tn.Dropout(1.0), lambda: nn.Dropout(0.0)),
    Pair("Dropout at evaluation", lambda: tn.Dropout(0.5).eval(), lambda: nn.Dropout(0.5).eval()),
    Pair(
        "Dense",
        lambda: nn.Sequential(tn.Dense(6, 4, "tanh")),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()),
    ),
    Pair(
        "MLP",
        lambda: tn.MLP([6, 5, 4, 1], ["relu", "tanh", "sigmoid"]),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()),
    ),
]
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


def run(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    y.pow(2).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


@pairs
def test_the_same_seed_gives_the_same_numbers(pair: Pair):
    torch.manual_seed(0)
    ours = pair.ours()
    torch.manual_seed(0)
    twin = pair.twin()
    for mine, theirs in zip(ours.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    x = torch.randn(7, 6)
    assert_close(run(ours, x), run(twin, x))


@pairs
def test_state_loads_both_ways(pair: Pair):
    ours, twin = pair.ours(), pair.twin()
    ours.load_state_dict(twin.state_dict(), strict=True)
    x = torch.randn(2, 6)
    assert_close(ours(x), twin(x))
    other = pair.ours()
    twin.load_state_dict(other.state_dict(), strict=True)
    assert_close(other(x), twin(x))


@pairs
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal_and_apart(pair: Pair, duplicate: Callable[[nn.Module], nn.Module]):
    module = pair.ours()
    twin = duplicate(module)
    x = torch.randn(3, 6)
    assert_close(run(module, x), run(twin, x), rtol=0, atol=0)
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()
    assert repr(module) == repr(twin)


@pairs
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(pair: Pair, strict: bool):
    module, x = pair.ours(), torch.randn(3, 6)
    program = torch.export.export(module, (x,), strict=strict)
    assert_close(program.module()(x), module(x))


@pairs
def test_compiled_modules(pair: Pair):
    torch._dynamo.reset()
    module, x = pair.ours(), torch.randn(3, 6)
    expected = run(module, x)
    assert_close(run(torch.compile(module, fullgraph=True, backend="aot_eager"), x), expected)


@pytest.mark.skipif(
    " " in torch.__file__, reason="Inductor passes its linker torch's own path unquoted, spaces and all"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the import of Inductor gives one of torch's own
def test_compiled_by_inductor():
    torch.manual_seed(0)
    module, x = tn.MLP([6, 5, 4, 1], "leaky_relu"), torch.randn(3, 6)
    expected = run(module, x)
    assert_close(run(torch.compile(module, fullgraph=True), x), expected)


def test_per_sample_gradients_of_a_module():
    net = tn.MLP([6, 5, 1], "tanh").double()
    parameters = dict(net.named_parameters())
    x = torch.randn(4, 6, dtype=torch.float64)

    def cost(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, parameters, (sample,)).pow(2).sum()

    batched = torch.vmap(torch.func.grad(cost), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        net.zero_grad()
        net(sample).pow(2).sum().backward()
        for name, parameter in net.named_parameters():
            assert_close(batched[name][i], parameter.grad)


def test_dropout_layers_follow_the_mode_and_their_generator():
    x = torch.ones(100)
    layer = tn.Dropout(0.5, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(layer)
    first = layer(x)
    assert 20 < int((first == 0).sum()) < 80
    assert torch.equal(twin(x), first)  # a copy has the generator in the state it was in
    assert not torch.equal(layer(x), first)  # a fresh mask for every pass
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (tn.Linear(3, 2, bias=False), "Linear(in_features=3, out_features=2, bias=False)"),
        (tn.LeakyReLU(0.3), "LeakyReLU(negative_slope=0.3)"),
        (tn.Dropout(keep_prob=0.8), "Dropout(keep_prob=0.8)"),
        (
            tn.Dense(3, 2, "leaky_relu", negative_slope=0.1),
            "Dense(in_features=3, out_features=2, bias=True, activation='leaky_relu', negative_slope=0.1, "
            "keep_prob=1.0)",
        ),
    ],
)
def test_printing(module: nn.Module, text: str):
    assert repr(module) == text


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tn.Linear(2.5, 1), TypeError, r"in_features must be a whole number, got float 2\.5"),
        (lambda: tn.Linear(2, -1), ValueError, r"out_features must be 0 or more, got -1"),
        (lambda: tn.ReLU(inplace=True), ValueError, r"ReLU must be called with inplace=False"),
        (lambda: tn.LeakyReLU(0.1, inplace=True), ValueError, r"LeakyReLU must be called with inplace=False"),
        (lambda: tn.LeakyReLU("a"), TypeError, r"negative_slope must be a number"),
        (lambda: tn.Dropout(0), ValueError, r"keep_prob must lie in \(0, 1\], got 0"),
        (lambda: tn.Dense(2, 2, "elu"), ValueError, r"activation must be one of identity, relu"),
        (lambda: tn.Dense(2, 2, keep_prob=1.1), ValueError, r"keep_prob must lie in \(0, 1\], got 1\.1"),
        (lambda: tn.Dense(2, 2, negative_slope=-1), ValueError, r"negative_slope must lie in \[0, inf\), got -1"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], nn.Module], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


def test_zero_inputs_and_outputs():
    assert tn.Linear(0, 3)(torch.ones(2, 0)).tolist() == [[0.0] * 3] * 2
    assert tn.Linear(3, 0)(torch.ones(2, 3)).shape == (2, 0)
