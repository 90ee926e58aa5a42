"""Softmax and log-softmax: the notes' numbers, extremes, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from torchnotes import ops

BOTH = pytest.mark.parametrize("name", ["softmax", "log_softmax"])


def test_the_notes_example():
    z = torch.tensor([5.0, 2.0, -1.0, 3.0])
    # The notes round e^z to one digit after the point and the result to three.
    assert_close(z.exp(), torch.tensor([148.4, 7.4, 0.4, 20.1]), rtol=0, atol=0.05)
    assert_close(ops.softmax(z, dim=0), torch.tensor([0.842, 0.042, 0.002, 0.114]), rtol=0, atol=5e-4)


def test_two_classes_are_logistic_regression():
    z = torch.linspace(-30, 30, 121, dtype=torch.float64)
    other = torch.full_like(z, 0.7)
    probability = ops.softmax(torch.stack([z, other]), dim=0)[0]
    assert_close(probability, 1 / (1 + torch.exp(-(z - other))), rtol=1e-13, atol=0)


@BOTH
def test_extreme_logits_are_finite_and_so_are_their_gradients(name: str):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]], requires_grad=True)
    y = getattr(ops, name)(z, dim=1)
    expected = torch.tensor([[1.0, 0.0, 0.0], [1 / 3] * 3, [1 / 3] * 3])
    if name == "log_softmax":
        expected = torch.tensor([[0.0, -2e4, -1e4], [-torch.tensor(3.0).log()] * 3, [-torch.tensor(3.0).log()] * 3])
    assert_close(y.detach(), expected)
    y[:, 1].sum().backward()
    assert z.grad.isfinite().all()


@BOTH
def test_nan_reaches_its_whole_axis_and_no_other(name: str):
    z = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
    assert getattr(ops, name)(z, dim=1).isnan().tolist() == [[True, True], [False, False]]


@BOTH
def test_a_masked_class_has_no_share(name: str):
    z = torch.tensor([1.0, -torch.inf, 2.0], requires_grad=True)
    y = getattr(ops, name)(z, dim=0)
    assert_close(y, getattr(F, name)(z, dim=0))
    y[0].backward()
    assert z.grad.isfinite().all()
    assert z.grad[1] == 0


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_layouts(name: str, dtype: torch.dtype):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in (base.T, base[:, ::2], base[0].expand(3, 6), base[:0], base[:, :0], base[0, 0], base.view(2, 2, 6)):
        for dim in range(-x.dim(), x.dim()) if x.dim() else (0, -1):
            ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
            mine, expected = getattr(ops, name)(ours, dim=dim), getattr(F, name)(theirs, dim=dim)
            assert_close(mine, expected)
            mine.sum().backward()  # an expanded cotangent; the exact gradient of softmax's is 0
            expected.sum().backward()
            assert_close(
                ours.grad, theirs.grad, rtol=2e-2, atol=2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-6
            )


@BOTH
def test_dtype_is_cast_first_and_integers_need_it(name: str):
    x = torch.tensor([1, 2, 3])
    assert_close(getattr(ops, name)(x, dim=0, dtype=torch.float64), getattr(F, name)(x, dim=0, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"input must be a floating-point tensor, got dtype int64; convert it with"):
        getattr(ops, name)(x, dim=0)
    with pytest.raises(TypeError, match=r"dtype must be floating point, got int64; use torch\.float32"):
        getattr(ops, name)(x, dim=0, dtype=torch.int64)


@BOTH
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_without_dim_it_warns_and_chooses_as_pytorch_does(name: str, shape: tuple[int, ...]):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="Implicit dimension choice for .*softmax has been deprecated") as ours:
        mine = getattr(ops, name)(x)
    assert ours[0].filename == __file__
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        assert_close(mine, getattr(F, name)(x))


@BOTH
def test_an_axis_that_is_not_there(name: str):
    with pytest.raises(IndexError, match=r"dim must lie in \[-2, 1\] for a tensor of shape \(2, 3\).*got 2"):
        getattr(ops, name)(torch.zeros(2, 3), dim=2)
    with pytest.raises(TypeError, match=r"dim must be an int, got float 1\.0"):
        getattr(ops, name)(torch.zeros(2, 3), dim=1.0)


def test_the_output_is_all_that_is_saved():
    saved: list[Tensor] = []
    z = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.softmax(z, dim=1)
    assert [t.data_ptr() for t in saved] == [y.data_ptr()]
