"""Both binary cross-entropies: the notes' equations, probabilities of 0 and 1, logits of ±1e4, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from torchnotes import ops

A = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)
Y = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
BOTH = pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_the_notes_loss():
    expected = -(Y * A.log() + (1 - Y) * (1 - A).log())
    assert_close(ops.binary_cross_entropy(A, Y, reduction="none"), expected)
    assert_close(ops.binary_cross_entropy(A, Y), expected.mean())  # the cost J
    z = (A / (1 - A)).log()
    assert_close(ops.binary_cross_entropy_with_logits(z, Y, reduction="none"), expected)


def test_dz_is_a_minus_y_through_the_sigmoid():
    z = torch.linspace(-5, 5, 3, dtype=torch.float64, requires_grad=True)
    a = ops.sigmoid(z)
    for loss in (ops.binary_cross_entropy(a, Y), ops.binary_cross_entropy_with_logits(z, Y)):
        (dz,) = torch.autograd.grad(loss, z, retain_graph=True)
        assert_close(dz, (a - Y).detach() / 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_of_exactly_0_and_1_are_finite(dtype: torch.dtype):
    a = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype, requires_grad=True)
    losses = ops.binary_cross_entropy(a, y, reduction="none")
    assert losses.dtype == dtype
    assert losses.tolist() == [0.0, 0.0, 100.0, 100.0]  # each logarithm is cut at −100
    grad_a, grad_y = torch.autograd.grad(losses.sum(), (a, y))
    assert grad_a.isfinite().all()
    assert grad_a.sign().tolist() == [0.0, 0.0, -1.0, 1.0]
    assert grad_y.tolist() == [100.0, -100.0, 100.0, -100.0]
    if dtype in (torch.float64, torch.float32):
        theirs = a.detach().requires_grad_()
        F.binary_cross_entropy(theirs, y.detach(), reduction="sum").backward()
        assert_close(grad_a, theirs.grad)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 1 / 65504), (torch.float32, 1e-12)], ids=str)
def test_the_least_denominator(dtype: torch.dtype, least: float):
    a = torch.zeros(1, dtype=dtype, requires_grad=True)
    ops.binary_cross_entropy(a, torch.ones(1, dtype=dtype), reduction="sum").backward()
    assert_close(a.grad, torch.tensor([-1 / least], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_1e4_are_finite(dtype: torch.dtype):
    z = torch.tensor([1e4, 1e4, -1e4, -1e4], dtype=dtype, requires_grad=True)
    y = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    losses = ops.binary_cross_entropy_with_logits(z, y, reduction="none")
    assert_close(losses, torch.tensor([0.0, 1e4, 1e4, 0.0], dtype=dtype))
    losses.sum().backward()
    assert z.grad.tolist() == [0.0, 1.0, -1.0, 0.0]
    weighted = ops.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor([3.0], dtype=dtype), reduction="none")
    assert_close(weighted, torch.tensor([0.0, 1e4, 3e4, 0.0], dtype=dtype))


@BOTH
def test_nan_in_nan_out(name: str):
    loss = getattr(ops, name)
    nan, half = torch.tensor([torch.nan, 0.5]), torch.tensor([0.5, 0.5])
    assert loss(nan, half, reduction="none").isnan().tolist() == [True, False]
    assert loss(half, nan, reduction="none").isnan().tolist() == [True, False]
    assert loss(nan, half).isnan()


@BOTH
def test_shapes_and_layouts(name: str):
    generator = torch.Generator().manual_seed(0)
    a, y = (torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    pick = [lambda t: t.T, lambda t: t[:, ::2], lambda t: t[0].expand(3, 6), lambda t: t[:0], lambda t: t[0, 0]]
    for view in pick:
        for reduction in ("none", "mean", "sum"):
            ours, theirs = view(a).detach().requires_grad_(), view(a).detach().requires_grad_()
            mine = getattr(ops, name)(ours, view(y), reduction=reduction)
            expected = getattr(F, name)(theirs, view(y), reduction=reduction)
            assert_close(mine, expected, equal_nan=True)  # the mean of nothing
            mine.sum().backward()
            expected.sum().backward()
            assert_close(ours.grad, theirs.grad)


@BOTH
@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (3, 1), ()])
def test_weight_broadcasts_and_has_a_gradient(name: str, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    a, y = (torch.rand(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    assert_close(getattr(ops, name)(a, y, weight), getattr(F, name)(a, y, weight.expand(3, 4)))
    leaf = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(ops, name)(a, y, leaf, reduction="sum"), leaf)
    losses = getattr(F, name)(a, y, reduction="none")
    assert_close(gradient, losses.sum_to_size(shape))


def test_pos_weight_has_a_gradient():
    z, y = A.clone(), Y.clone()
    p = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.binary_cross_entropy_with_logits(z, y, pos_weight=p, reduction="sum"), p)
    assert_close(gradient, (y * torch.log1p(torch.exp(-z))).sum().reshape(1))


@BOTH
def test_a_target_without_the_columns_axis_is_refused(name: str):
    with pytest.raises(
        ValueError,
        match=r"target must have the shape of input, got target \(3,\) against input \(3, 1\), which would silently "
        r"broadcast to \(3, 3\); add the missing axis with target\.unsqueeze\(-1\)",
    ):
        getattr(ops, name)(A.unsqueeze(1), Y)
    with pytest.raises(ValueError, match=r"Using a target size|Target size"):
        getattr(F, name)(A.unsqueeze(1), Y)


WRONG = [
    (ValueError, r"input must lie in \[0, 1\], got values from 0\.2 to 1\.5; apply the sigmoid", A.clone().fill_(0.2).index_fill(0, torch.tensor(1), 1.5), Y, {}),  # noqa: E501
    (ValueError, r"target must lie in \[0, 1\], got values from -1 to 0", A, Y.new_tensor([0.0, -1.0, 0.0]), {}),
    (TypeError, r"target must have the dtype of input, .* convert it with target\.to\(input\.dtype\)", A, Y.float(), {}),  # noqa: E501
    (TypeError, r"target must be a floating-point tensor, got dtype int64", A, Y.long(), {}),
    (TypeError, r"input must be a floating-point tensor, got dtype int64", A.long(), Y, {}),
    (ValueError, r"weight must broadcast to the shape of input \(3,\), got a tensor of shape \(5,\)", A, Y, {"weight": torch.ones(5)}),  # noqa: E501
    (ValueError, r"weight must broadcast to the shape of input \(3,\), got a tensor of shape \(2, 3\)", A, Y, {"weight": torch.ones(2, 3)}),  # noqa: E501
    (ValueError, r"'men' is not a valid value for reduction", A, Y, {"reduction": "men"}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "input", "target", "options"), WRONG, ids=range(len(WRONG)))
def test_what_is_refused_and_how(error: type[Exception], words: str, input: Tensor, target: Tensor, options: dict):
    with pytest.raises(error, match=words):
        ops.binary_cross_entropy(input, target, **options)


def test_pos_weight_that_does_not_broadcast():
    with pytest.raises(ValueError, match=r"pos_weight must broadcast to the shape of input \(3,\)"):
        ops.binary_cross_entropy_with_logits(A, Y, pos_weight=torch.ones(2))


def test_the_dtypes_of_logits_and_target_are_promoted():
    z = A.float().requires_grad_()
    loss = ops.binary_cross_entropy_with_logits(z, Y)
    assert loss.dtype == F.binary_cross_entropy_with_logits(z, Y).dtype == torch.float64


def test_out_of_range_is_nan_where_looking_would_wait():
    with torch.no_grad():
        losses = torch.vmap(ops.binary_cross_entropy)(torch.tensor([1.5, 0.5]), torch.tensor([1.0, 0.0]))
    assert losses.isnan().tolist() == [True, False]
