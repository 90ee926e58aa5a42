"""PyTorch's own sample inputs for each Module that has a twin: `module_db`, in training and in evaluation."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import torchnotes.nn as tn

NAMES = [
    "Linear", "Sigmoid", "Tanh", "ReLU", "LeakyReLU", "Softmax", "LogSoftmax", "BCELoss", "BCEWithLogitsLoss",
    "CrossEntropyLoss", "BatchNorm1d", "BatchNorm2d",
]  # fmt: skip


@functools.cache
def module_infos() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing PyTorch's test tables warns about its own internals
        from torch.testing._internal.common_modules import module_db
    return {info.module_cls.__name__: info for info in module_db}


def run_samples(name: str, dtype: torch.dtype, training: bool) -> int:
    info, count = module_infos()[name], 0
    torch.manual_seed(0)  # a weight drawn below zero can make a mean's denominator all but vanish, in the twin as here
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
        arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
        theirs = getattr(nn, name)(
            *arguments, **{"dtype": dtype, **options} if hasattr(info.module_cls, "weight") else options
        )
        theirs = theirs.to(dtype).train(training)
        if options.get("inplace"):
            continue  # an op here leaves its input unmodified, and says so
        ours = getattr(tn, name)(*arguments, **options).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        inputs = (*sample.forward_input.args, *sample.forward_input.kwargs.values())
        results = []
        for module in (ours, theirs):
            own = [t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in inputs]
            y = module(*own)
            y.sum().backward() if y.requires_grad else None
            gradients = [t.grad for t in own if isinstance(t, Tensor)] + [p.grad for p in module.parameters()]
            results.append((y.detach(), gradients, dict(module.state_dict())))
        assert_close(results[0], results[1], equal_nan=True)
        assert repr(ours) == repr(theirs)
        count += 1
    return count


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_samples(name: str, dtype: torch.dtype, training: bool):
    assert run_samples(name, dtype, training) > 0


MODULES = [
    (lambda lib: lib.Softmax(dim=1), (4, 3), None),
    (lambda lib: lib.LogSoftmax(dim=-1), (4, 3), None),
    (lambda lib: lib.BCELoss(weight=torch.tensor([1.0, 2.0, 0.5])), (4, 3), torch.full((4, 3), 0.3)),
    (lambda lib: lib.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 3.0])), (4, 3), torch.full((4, 3), 0.3)),
    (lambda lib: lib.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1), (4, 3), torch.tensor([0, 2, 1, -100])),  # noqa: E501
    (lambda lib: lib.BatchNorm1d(3), (4, 3), None),
    (lambda lib: lib.BatchNorm1d(3, momentum=None), (4, 3, 2), None),
    (lambda lib: lib.BatchNorm1d(3, bias=False), (4, 3, 2), None),
    (lambda lib: lib.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 2, 2), None),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "target"), MODULES, ids=[str(i) for i in range(len(MODULES))])
def test_state_dict_copies_pickles_and_exports(make: Any, shape: tuple[int, ...], target: Tensor | None):
    try:
        ours, theirs = make(tn), make(nn)
    except TypeError:
        if "bias" in inspect.signature(nn.BatchNorm1d).parameters:
            raise
        pytest.skip("the twin of this torch takes no bias=")
    assert isinstance(ours, type(theirs))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    inputs = (x,) if target is None else (x, target)
    for _ in range(3):
        assert_close(ours(*inputs), theirs(*inputs))
        assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    ours.eval()
    expected = ours(*inputs)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False).eval()):
        assert type(other) is type(ours)
        assert_close(other(*inputs), expected)
    exported = torch.export.export(ours, inputs)
    assert_close(exported.module()(*inputs), expected)


@pytest.mark.parametrize(("make", "shape", "target"), MODULES, ids=[str(i) for i in range(len(MODULES))])
def test_compiled_in_training(make: Any, shape: tuple[int, ...], target: Tensor | None):
    try:
        make(nn)
    except TypeError:
        pytest.skip("the twin of this torch takes no bias=")
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        module = make(tn)
        call = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = call(x) if target is None else call(x, target)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, [p.grad for p in module.parameters()], dict(module.state_dict())))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("layer", [tn.BatchNorm1d, tn.BatchNorm2d])
def test_the_notes_running_average(layer: type[nn.Module]):
    norm = layer(3, average=0.9)
    shape = (4, 3) if layer is tn.BatchNorm1d else (4, 3, 2, 2)
    z = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    norm(z)
    axes = [0, *range(2, z.dim())]
    assert_close(norm.running_mean, 0.1 * z.mean(axes))
    assert_close(norm.running_var, 0.9 * torch.ones(3) + 0.1 * z.var(axes, correction=0))
    assert repr(norm).endswith("average=0.9)")
    assert copy.deepcopy(norm).average == 0.9
    norm.eval()
    before = norm.running_mean.clone()
    norm(z)
    assert torch.equal(norm.running_mean, before)
    with pytest.raises(ValueError, match=r"average must lie in \[0, 1\], got 2\.0"):
        layer(3, average=2.0)


def test_axes_of_batch_norm():
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        tn.BatchNorm1d(3)(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="expected 4D input"):
        tn.BatchNorm2d(3)(torch.zeros(2, 3))


def test_a_net_compiled_with_all_of_them():
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(tn.Linear(5, 4), tn.BatchNorm1d(4), tn.ReLU(), tn.Linear(4, 3))
    loss = tn.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(8, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, -100])
    eager = copy.deepcopy(net)
    compiled = torch.compile(lambda x, y: loss(net(x), y), fullgraph=True, backend="aot_eager")
    compiled(x, y).backward()
    loss(eager(x), y).backward()
    for mine, expected in zip(net.parameters(), eager.parameters(), strict=True):
        assert_close(mine.grad, expected.grad)
    assert_close(dict(net.state_dict()), dict(eager.state_dict()))
