"""Softmax cross-entropy: the notes' equations, extremes, what is kept, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from torchnotes import ops

Z = torch.tensor([[5.0, 2.0, -1.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 4.0, 2.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([1, 3, 1])


def test_the_notes_target_leaves_one_term():
    y = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    yhat_2 = Z[0, 1].exp() / Z[0].exp().sum()
    assert_close(ops.cross_entropy(Z[:1], Y[:1]), -yhat_2.log())
    assert_close(ops.cross_entropy(Z[:1], y), -yhat_2.log())


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_dz_is_yhat_minus_y(as_probabilities: bool):
    y = F.one_hot(Y, 4).double()
    z = Z.clone().requires_grad_()
    ops.cross_entropy(z, y if as_probabilities else Y, reduction="sum").backward()
    assert_close(z.grad, Z.exp() / Z.exp().sum(1, keepdim=True) - y)


def test_extreme_logits():
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], requires_grad=True)
    losses = ops.cross_entropy(z, torch.tensor([1, 2]), reduction="none")
    assert losses.tolist() == [2e4, 0.0]
    losses.sum().backward()
    assert z.grad.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    soft = ops.cross_entropy(z, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), reduction="none")
    assert soft.tolist() == [1e4, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_samples_do_not_count_even_where_they_are_nan(smoothing: float, weighted: bool):
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    kept = ops.cross_entropy(Z[[0, 2]], Y[[0, 2]], weight, label_smoothing=smoothing)
    z = Z.clone()
    z[1] = torch.nan
    y = torch.tensor([1, -7, 1])
    assert_close(ops.cross_entropy(z, y, weight, ignore_index=-7, label_smoothing=smoothing), kept)
    whole = Z.clone().requires_grad_()
    ops.cross_entropy(whole, y, weight, ignore_index=-7, label_smoothing=smoothing).backward()
    assert whole.grad[1].tolist() == [0.0] * 4
    assert ops.cross_entropy(Z, y, weight, ignore_index=-7, label_smoothing=smoothing, reduction="none")[1] == 0
    assert ops.cross_entropy(Z, torch.full((3,), -7), weight, ignore_index=-7, label_smoothing=smoothing).isnan()


def test_nan_and_infinite_logits():
    z = torch.tensor([[torch.nan, 0.0], [0.0, 1.0], [-torch.inf, 1.0]])
    losses = ops.cross_entropy(z, torch.tensor([1, 1, 0]), reduction="none")
    assert losses.isnan().tolist() == [True, False, False]
    assert losses[2] == torch.inf


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_types_of_the_indices(dtype: torch.dtype):
    assert_close(ops.cross_entropy(Z, Y.to(dtype)), F.cross_entropy(Z, Y))


def test_a_single_sample_and_a_target_of_shape_1():
    for target in (torch.tensor(2), torch.tensor([2])):
        for reduction in ("none", "mean", "sum"):
            ours = ops.cross_entropy(Z[0], target, reduction=reduction, label_smoothing=0.1)
            assert_close(ours, F.cross_entropy(Z[0], torch.tensor(2), reduction=reduction, label_smoothing=0.1))


def test_empty_batches():
    z = torch.zeros(0, 3, requires_grad=True)
    assert ops.cross_entropy(z, Y[:0]).isnan()
    assert ops.cross_entropy(z, Y[:0], reduction="sum") == 0
    assert ops.cross_entropy(z, torch.zeros(0, 3)).isnan()
    for reduction in ("none", "mean", "sum"):
        (grad_z,) = torch.autograd.grad(ops.cross_entropy(z, Y[:0], reduction=reduction).sum(), z)
        assert grad_z.shape == (0, 3)


def test_a_half_precision_mean_over_many_samples_keeps_its_digits():
    # 1/m for m = 70,000 is below float16's smallest normal number, and the sum of the losses above its largest.
    z = torch.zeros(70_000, 2, dtype=torch.float16)
    loss = ops.cross_entropy(z, torch.zeros(70_000, dtype=torch.long))
    assert_close(loss, torch.tensor(2.0).log().half(), rtol=2e-3, atol=0)


@pytest.mark.parametrize(("options", "numbers"), [({}, 12), ({"label_smoothing": 0.1}, 12), ({"weight": True}, 16)])
def test_nothing_of_the_size_of_the_logits_is_kept_but_one(options: dict, numbers: int):
    saved: dict[int, Tensor] = {}
    options = {k: torch.ones(4, dtype=torch.float64) if k == "weight" else v for k, v in options.items()}
    z = Z.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t}) or t, lambda t: t):
        ops.cross_entropy(z, Y, **options)
    assert sum(t.numel() for t in saved.values() if t.is_floating_point()) == numbers  # 3 × 4, and the 4 weights
    assert sum(t.numel() for t in saved.values() if not t.is_floating_point()) == 3


def test_weights_have_a_gradient_for_probabilities():
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    q = torch.softmax(Z.flip(0), 1)
    ours = torch.autograd.grad(ops.cross_entropy(Z, q, weight, label_smoothing=0.2), weight)
    assert_close(ours, torch.autograd.grad(F.cross_entropy(Z, q, weight, label_smoothing=0.2), weight))


def test_the_dtypes_of_logits_and_probabilities_are_promoted():
    z, q = Z.float().requires_grad_(), torch.softmax(Z, 1)
    loss = ops.cross_entropy(z, q)
    assert loss.dtype == F.cross_entropy(z, q).dtype == torch.float64
    loss.backward()
    assert z.grad.dtype == torch.float32


WRONG = [  # one case a line
    # (exception, what it says, input, target, options)
    (ValueError, r"target must have shape \(3,\) .* got a tensor of shape \(3, 1\).*target\.squeeze\(-1\)", Z, Y[:, None], {}),  # noqa: E501
    (ValueError, r"target must have shape \(3,\) .* got a tensor of shape \(2,\)", Z, Y[:2], {}),
    (ValueError, r"give every position its own class", Z.view(3, 2, 2), Y, {}),
    (TypeError, r"integer class indices .*got a tensor of shape \(3,\) and dtype float32.*target\.long\(\)", Z, Y.float(), {}),  # noqa: E501
    (TypeError, r"floating-point probabilities .*got a tensor of shape \(3, 4\) and dtype int64", Z, F.one_hot(Y, 4), {}),  # noqa: E501
    (IndexError, r"class indices in \[0, 3\] or ignore_index=-100, got 4; check the labels", Z, Y + 1, {}),
    (IndexError, r"class indices in \[0, 3\] or ignore_index=7, got -99", Z, Y - 101 + Y, {"ignore_index": 7}),
    (ValueError, r"must have an axis of classes", Z[0, 0], Y[0], {}),
    (ValueError, r"'men' is not a valid value for reduction; use 'none'", Z, Y, {"reduction": "men"}),
    (ValueError, r"label_smoothing must lie in \[0, 1\], got 1\.5; 0\.1 is usual", Z, Y, {"label_smoothing": 1.5}),
    (TypeError, r"label_smoothing must be a number in \[0, 1\], got bool True", Z, Y, {"label_smoothing": True}),
    (ValueError, r"each of the 4 classes, got a tensor of shape \(3,\)", Z, Y, {"weight": torch.ones(3)}),
    (TypeError, r"weight must be a floating-point tensor", Z, Y, {"weight": torch.ones(4).long()}),
    (ValueError, r"weight must not require a gradient.*weight\.detach\(\)", Z, Y, {"weight": torch.ones(4, requires_grad=True)}),  # noqa: E501
    (ValueError, r"ignore_index must be left out for a target of probabilities, got 1", Z, Z, {"ignore_index": 1}),
    (ValueError, r"ignore_index must be left out for a target of probabilities, got 0", Z, Z, {"ignore_index": 0}),
    (TypeError, r"input must be a floating-point tensor", Z.long(), Y, {}),
    (TypeError, r"target must be a torch\.Tensor, got list", Z, [1, 3, 1], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words", "input", "target", "options"), WRONG, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_is_refused_and_how(error: type[Exception], words: str, input: Tensor, target: Tensor, options: dict):
    with pytest.raises(error, match=words):
        ops.cross_entropy(input, target, **options)


def test_the_twin_refuses_an_index_out_of_range_with_the_same_exception():
    with pytest.raises(IndexError):
        F.cross_entropy(Z, Y + 1)


def test_deprecated_arguments_mean_what_they_mean_to_pytorch():
    for size_average, reduce in ((True, None), (False, None), (None, False), (False, True), (True, False)):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            ours = ops.cross_entropy(Z, Y, size_average=size_average, reduce=reduce)
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            assert_close(ours, F.cross_entropy(Z, Y, size_average=size_average, reduce=reduce))


def test_forward_mode_refuses_a_tangent_of_the_weight_with_class_indices():
    with pytest.raises((NotImplementedError, ValueError), match="weight must not require a gradient"):
        torch.func.jvp(lambda w: ops.cross_entropy(Z, Y, w), (torch.ones(4).double(),), (torch.ones(4).double(),))


def test_forward_mode_refuses_a_tangent_of_the_weight_beside_one_of_the_logits():
    weight = torch.ones(4).double()
    with pytest.raises((NotImplementedError, ValueError), match="weight must not require a gradient"):
        torch.func.jvp(lambda z, w: ops.cross_entropy(z, Y, w), (Z, weight), (Z, weight))


def test_gradients_along_a_tangent_of_the_probabilities_alone():
    # With L = −Σ q log ŷ: z̄ = ŷ Σ_c q_c − q and q̄ = −log ŷ, of which only z̄ depends on q.
    q, dq = torch.softmax(Z.flip(0), 1), Z.flip(1)

    def gradients(q: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.grad(lambda z, q: ops.cross_entropy(z, q, reduction="sum"), argnums=(0, 1))(Z, q)

    _, (along_z, along_q) = torch.func.jvp(gradients, (q,), (dq,))
    yhat = Z.exp() / Z.exp().sum(1, keepdim=True)
    assert_close(along_z, yhat * dq.sum(1, keepdim=True) - dq)
    assert_close(along_q, torch.zeros_like(Z))


@pytest.mark.parametrize("as_probabilities", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_smoothing_of_images(as_probabilities: bool, reduction: str):
    generator = torch.Generator().manual_seed(0)
    z, dz = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 4, 5), generator=generator)
    target[0, 1, 2] = -100
    if as_probabilities:
        target = torch.softmax(torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64), 1)
    options = {
        "weight": torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64),
        "reduction": reduction,
        "label_smoothing": 0.2,
    }
    expected, slope = torch.func.jvp(lambda z: F.cross_entropy(z, target, **options), (z,), (dz,))
    for ours in (ops.cross_entropy(z, target, **options), ops.cross_entropy(z.requires_grad_(), target, **options)):
        assert_close(ours, expected)
    assert_close(torch.func.jvp(lambda z: ops.cross_entropy(z, target, **options), (z.detach(),), (dz,))[1], slope)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (f(z, target, **options) for f in (ops.cross_entropy, F.cross_entropy))
    assert_close(torch.autograd.grad(ours, z, cotangent), torch.autograd.grad(theirs, z, cotangent))


@pytest.mark.parametrize("target", [Y, torch.softmax(Z.flip(0), 1)], ids=["indices", "probabilities"])
def test_a_loss_of_the_output_and_of_the_gradient_at_once(target: Tensor):
    # Something then comes back to the loss and to log ŷ in one pass.
    results = []
    for function in (ops.cross_entropy, F.cross_entropy):
        z = Z.clone().requires_grad_()
        loss = function(z, target, label_smoothing=0.2)
        (grad_z,) = torch.autograd.grad(loss, z, create_graph=True)
        results.append(torch.autograd.grad(loss.square() + grad_z.pow(2).sum(), z))
    assert_close(results[0], results[1])


def test_against_pytorch_at_the_size_of_a_vocabulary():
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(16, 5000, generator=generator)).requires_grad_()
    y = torch.randint(5000, (16,), generator=generator)
    for options in ({}, {"label_smoothing": 0.1}):
        ours, theirs = ops.cross_entropy(z, y, **options), F.cross_entropy(z, y, **options)
        assert_close(ours, theirs)
        assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z))


@pytest.mark.parametrize("ignored", [0, 1, 3, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_any_class_may_be_the_one_ignored(ignored: int, reduction: str):
    y = torch.tensor([0, 3, 1])
    ours = ops.cross_entropy(Z, y, ignore_index=ignored, reduction=reduction)
    assert_close(ours, F.cross_entropy(Z, y, ignore_index=ignored, reduction=reduction))
