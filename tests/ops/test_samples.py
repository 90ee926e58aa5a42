"""PyTorch's own sample inputs for each op that has a twin, through ours: values, gradients, every derivative.

`op_db` is the table behind PyTorch's own op tests: the corners its authors thought worth trying. Forward and gradients
are compared with PyTorch's own in float64 and float32; the derivatives of ours are compared with differences.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchnotes import ops

TWINS = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "nn.functional.linear": "linear",
    "nn.functional.relu": "relu",
    "nn.functional.leaky_relu": "leaky_relu",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
    "nn.functional.binary_cross_entropy": "binary_cross_entropy",
    "nn.functional.binary_cross_entropy_with_logits": "binary_cross_entropy_with_logits",
    "nn.functional.cross_entropy": "cross_entropy",
    "nn.functional.batch_norm": "batch_norm",
}
NAMES = [name for name, ours in TWINS.items() if hasattr(ops, ours)]


@functools.cache
def op_infos(name: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing PyTorch's test tables warns about its own internals
        from torch.testing._internal.common_methods_invocations import op_db
    return [info for info in op_db if info.name == name]


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[..., Tensor], Callable[..., Tensor], Any]]:
    """(what it is, ours, theirs, the sample) for every variant of the op."""
    ours = getattr(ops, TWINS[name])
    for info in op_infos(name):
        if dtype not in info.dtypes:
            continue  # a second entry for another device
        torch.manual_seed(0)  # the samples are drawn from PyTorch's global generator, one at a time
        drawn = list(info.sample_inputs("cpu", dtype, requires_grad=True))
        for number, sample in enumerate(drawn):
            label = f"{name}{info.variant_test_name and '.' + info.variant_test_name} #{number}: {sample.summary()}"
            yield label, ours, info.op, sample


def call(function: Callable[..., Tensor], sample: Any) -> Tensor:
    result: Tensor = function(sample.input, *sample.args, **sample.kwargs)
    return result


def differentiable(sample: Any) -> tuple[Tensor, ...]:
    arguments = (sample.input, *sample.args, *sample.kwargs.values())
    return tuple(t for t in arguments if isinstance(t, Tensor) and t.requires_grad)


def as_function(function: Callable[..., Tensor], sample: Any) -> Callable[..., Tensor]:
    """The op as a function of its differentiable arguments alone, as gradcheck wants it."""

    def of_differentiable(*tensors: Tensor) -> Tensor:
        given = iter(tensors)

        def put(value: Any) -> Any:
            return next(given) if isinstance(value, Tensor) and value.requires_grad else value

        input = put(sample.input)
        args = [put(value) for value in sample.args]
        return function(input, *args, **{key: put(value) for key, value in sample.kwargs.items()})

    return of_differentiable


def run_all(name: str, dtype: torch.dtype, check: Callable[..., None]) -> None:
    """Run the check on every sample and report all that fail, not the first."""
    failures, count = [], 0
    for label, ours, theirs, sample in samples(name, dtype):
        count += 1
        try:
            check(ours, theirs, sample)
        except Exception as error:
            failures.append(f"{label}\n    {type(error).__name__}: {error}")
    assert count, f"PyTorch has no samples of {name} any more"
    assert not failures, f"{len(failures)} of {count} samples:\n" + "\n".join(failures)


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], sample: Any) -> None:
    theirs_sample, before = own_buffers(sample), copies(sample)
    expected = call(theirs, theirs_sample)
    got = call(ours, sample)
    # assert_close's tolerances are PyTorch's for the dtype: both sides round, in a different order.
    torch.testing.assert_close(got, expected, equal_nan=True)
    # Running statistics are updated in place by both; all else must be as it was.
    torch.testing.assert_close(copies(sample), copies(theirs_sample), equal_nan=True)
    if not sample.kwargs.get("training"):
        torch.testing.assert_close(copies(sample), before, rtol=0, atol=0, equal_nan=True)
    wanted = differentiable(sample)
    cotangent = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, cotangent, allow_unused=True),
        torch.autograd.grad(expected, wanted, cotangent, allow_unused=True),
        equal_nan=True,
    )


def own_buffers(sample: Any) -> Any:
    """The sample with copies of the tensors that need no gradient; the others are shared."""
    return sample.transform(lambda t: t if not isinstance(t, Tensor) or t.requires_grad else t.clone())


def copies(sample: Any) -> list[Tensor]:
    arguments = (sample.input, *sample.args, *sample.kwargs.values())
    return [t.detach().clone() for t in arguments if isinstance(t, Tensor)]


def finite_derivative(sample: Any, theirs: Callable[..., Tensor]) -> bool:
    """A difference means nothing where the value itself is NaN (the mean of no sample at all)."""
    return bool(call(theirs, sample).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_pytorch(name: str, dtype: torch.dtype) -> None:
    run_all(name, dtype, compare)


@pytest.mark.parametrize("name", NAMES)
def test_first_derivatives_are_those_of_differences(name: str) -> None:
    def check(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], sample: Any) -> None:
        if finite_derivative(sample, theirs):
            gradcheck(
                as_function(ours, sample),
                differentiable(sample),
                check_forward_ad=True,
                check_batched_grad=True,
                check_batched_forward_grad=True,
                check_undefined_grad=True,
            )

    run_all(name, torch.float64, check)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_differences(name: str) -> None:
    def check(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], sample: Any) -> None:
        if finite_derivative(sample, theirs):
            gradgradcheck(
                as_function(ours, sample),
                differentiable(sample),
                check_fwd_over_rev=True,
                check_rev_over_rev=True,
                check_batched_grad=True,
                check_undefined_grad=True,
            )

    run_all(name, torch.float64, check)
