from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchnotes.nn as tn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds(net: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in net]


def test_layers_by_activation_and_keep_prob():
    assert kinds(tn.MLP([4, 3, 2])) == ["Linear", "ReLU", "Linear"]
    assert kinds(tn.MLP([4, 1])) == ["Linear"]
    assert kinds(tn.MLP([4, 3, 1], ["tanh", "sigmoid"])) == ["Linear", "Tanh", "Linear", "Sigmoid"]
    assert kinds(tn.MLP([4, 3, 1], None)) == ["Linear", "Linear"]
    assert kinds(tn.MLP([4, 3, 1], nn.GELU)) == ["Linear", "GELU", "Linear"]
    assert kinds(tn.MLP([4, 3, 2, 1], keep_prob=[0.5, 1.0])) == [
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
        "ReLU",
        "Linear",
    ]
    with_input = tn.MLP([4, 3, 1], keep_prob=[0.9, 0.5])
    assert kinds(with_input) == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.keep_prob for layer in with_input if isinstance(layer, tn.Dropout)] == [0.9, 0.5]
    assert all(layer.bias is None for layer in tn.MLP([4, 3, 1], bias=False) if isinstance(layer, tn.Linear))
    assert tn.MLP([4, 3, 1], dtype=torch.float64)[0].weight.dtype == torch.float64


def test_the_notes_shapes():
    # W (n_l, n_{l-1}) and b (n_l), for the notes' network of 20, 7, 5 and 1 units on 209 samples.
    net = tn.MLP([20, 7, 5, 1])
    assert [tuple(p.shape) for p in net.parameters()] == [(7, 20), (7,), (5, 7), (5,), (1, 5), (1,)]
    assert net(torch.randn(209, 20)).shape == (209, 1)


def test_a_slice_is_a_sequential():
    net = tn.MLP([4, 3, 2, 1])
    head = net[:2]
    assert type(head) is nn.Sequential
    assert head[0] is net[0]
    assert kinds(net[-1:]) == ["Linear"]


NETS = {
    "relu": lambda: tn.MLP([4, 6, 5, 2]),
    "without bias": lambda: tn.MLP([4, 6, 5, 2], "sigmoid", bias=False),
    "mixed": lambda: tn.MLP([4, 6, 5, 3, 2], ["relu", "tanh", "leaky_relu", "sigmoid"]),
    "linear": lambda: tn.MLP([4, 6, 5, 2], "identity"),
    "one layer": lambda: tn.MLP([4, 2]),
    "dropout": lambda: tn.MLP([4, 6, 5, 6, 2], ["relu", "tanh", "sigmoid"], [0.9, 0.7, 0.6, 0.5], generator=seeded()),
    "dropout after leaky relu and nothing": lambda: tn.MLP([4, 6, 5, 2], ["leaky_relu", None], 0.7, generator=seeded()),
}


def make(name: str) -> tn.MLP:
    torch.manual_seed(1)
    return NETS[name]().double()


def watched(net: tn.MLP) -> tn.MLP:
    """The same net with a hook that does nothing, so that its layers run one by one."""
    net[0].register_forward_hook(lambda *_: None)
    return net


def first_and_second(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Value, gradients and the gradients of a scalar made of the gradients."""
    x = x.detach().requires_grad_()
    variables = [x, *net.parameters()]
    y = net(x)
    first = torch.autograd.grad(y.pow(3).sum(), variables, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), variables)
    return [y.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(7, 4), (4,), (2, 3, 4), (0, 4)], ids=str)
def test_one_op_for_the_net_gives_what_the_layers_give(name: str, shape: tuple[int, ...]):
    x = torch.randn(shape, generator=seeded(5), dtype=torch.float64)
    assert_close(first_and_second(make(name), x), first_and_second(watched(make(name)), x))


@pytest.mark.parametrize("name", NETS)
def test_one_op_against_difference_quotients(name: str):
    x = torch.randn(5, 4, generator=seeded(5), dtype=torch.float64)
    net = make(name)
    net(x)
    state = None if "dropout" not in name else next(m for m in net if isinstance(m, tn.Dropout)).generator
    start = None if state is None else state.get_state()
    names = [key for key, _ in net.named_parameters()]

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        if state is not None:
            state.set_state(start)
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    inputs = tuple(t.detach().clone().requires_grad_() for t in (x, *net.parameters()))
    assert "NetworkFunction" in type(f(*inputs).grad_fn).__name__
    assert torch.autograd.gradcheck(f, inputs, check_batched_grad=True, check_undefined_grad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def is_one_op(net: nn.Module) -> bool:
    return "NetworkFunction" in type(net(torch.randn(3, 4)).grad_fn).__name__


def test_what_makes_the_layers_run_one_by_one():
    assert is_one_op(tn.MLP([4, 3, 2]))
    assert not is_one_op(tn.MLP([4, 3, 2], nn.ReLU))  # PyTorch's own layer
    assert not is_one_op(tn.MLP([4, 3, 2], lambda: tn.LeakyReLU(-0.5)))
    for hook in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        net = tn.MLP([4, 3, 2])
        handle = getattr(net[1], hook)(lambda *_: None)
        assert not is_one_op(net)
        handle.remove()
        assert is_one_op(net)
    net = tn.MLP([4, 3, 2])
    net[1].forward = torch.relu
    assert not is_one_op(net)
    net = tn.MLP([4, 3, 2])
    nn.utils.parametrizations.weight_norm(net[0])
    assert not is_one_op(net)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_one_op(tn.MLP([4, 3, 2]))
    finally:
        handle.remove()


def test_hooks_see_every_layer():
    net, seen = tn.MLP([4, 3, 2]), []
    for layer in net:
        layer.register_forward_hook(lambda module, _, output: seen.append((type(module).__name__, tuple(output.shape))))
    net(torch.randn(5, 4))
    assert seen == [("Linear", (5, 3)), ("ReLU", (5, 3)), ("Linear", (5, 2))]


def test_frozen_layers_get_no_gradient():
    net = tn.MLP([4, 3, 3, 2])
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net(torch.randn(5, 4)).sum().backward()
    assert [p.grad is not None for p in net.parameters()] == [False, False, True, False, True, True]


def test_a_layer_replaced_after_construction_is_used():
    net = tn.MLP([4, 3, 2])
    net[1] = tn.Tanh()
    x = torch.randn(5, 4)
    assert_close(net(x), net[2](torch.tanh(net[0](x))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype):
    net, x = tn.MLP([4, 3, 2]), torch.randn(5, 4)
    with torch.autocast("cpu", dtype):
        y = net(x)
        expected = watched(net)(x)
    assert y.dtype == expected.dtype == dtype
    assert torch.equal(y, expected)
    y.sum().backward()
    assert net[0].weight.grad.dtype == torch.float32


def test_the_output_is_freed_without_the_cyclic_collector():
    gc.disable()
    try:
        y = tn.MLP([4, 3, 2])(torch.randn(5, 4))
        alive = weakref.ref(y)
        del y
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([4],), ValueError, r"sizes must have at least the number of inputs and of outputs, got \[4\]"),
        ((4,), TypeError, r"sizes must be a sequence of whole numbers, got int 4; write \[20, 7, 5, 1\]"),
        (([4, 2.5],), TypeError, r"sizes\[1\] must be a whole number, got float 2\.5"),
        (([4, 3, 1], "swish"), ValueError, r"activation must be one of relu, sigmoid, .*, got 'swish'; for another"),
        (([4, 3, 1], nn.ReLU()), TypeError, r"activation must be a name or a callable that makes a module, got ReLU"),
        (
            ([4, 3, 1], ["relu"] * 3),
            ValueError,
            r"activation must have one entry for each of the 1 hidden layers, or 2",
        ),
        (
            ([4, 3, 1], "relu", [0.5] * 3),
            ValueError,
            r"keep_prob must have one entry for each of the 1 hidden layers, or 2",
        ),
        (([4, 3, 1], "relu", [0.5, 0.0]), ValueError, r"keep_prob\[1\] must lie in \(0, 1\], got 0\.0"),
        (([4, 3, 1], "relu", 1.5), ValueError, r"keep_prob must lie in \(0, 1\], got 1\.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[object, ...], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        tn.MLP(*arguments)


def test_bad_input_is_refused_at_the_door():
    net = tn.MLP([4, 3, 1])
    with pytest.raises(ValueError, match=r"input must have shape \(\*, n_in\) with n_in = 4 .*, got \(5, 3\)"):
        net(torch.ones(5, 3))
    with pytest.raises(TypeError, match=r"input must be a floating-point tensor, got dtype int64"):
        net(torch.ones(5, 4).long())
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got list"):
        net([1.0])
    with pytest.raises(ValueError, match=r"input must have shape \(\*, n_in\)"):
        net(torch.tensor(1.0))


@pytest.mark.parametrize(("activation", "masks"), [("relu", 0), ("sigmoid", 0), ("tanh", 2), ("leaky_relu", 2)])
def test_masks_are_saved_only_where_the_output_does_not_tell(activation: str, masks: int):
    net = tn.MLP([4, 5, 3, 1], activation, keep_prob=0.5)
    output = net(torch.ones(6, 4))  # held: torch 2.11 frees what was saved with the output
    saved = [t for t in output.grad_fn.saved_tensors if t is not None]
    assert sum(t.dtype == torch.bool for t in saved) == masks
