"""Batch normalisation: the notes' equations, both running averages, the statistics' precision, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from torchnotes import ops


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def stats(channels: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (2, 3, 4, 5)])
def test_gamma_sigma_and_beta_mu_give_the_identity(shape: tuple[int, ...]):
    z = 5 + 3 * drawn(*shape)
    axes = [0, *range(2, z.dim())]
    eps = 1e-2
    gamma, beta = (z.var(axes, correction=0) + eps).sqrt(), z.mean(axes)
    assert_close(ops.batch_norm(z, None, None, gamma, beta, training=True, eps=eps), z)


def test_the_output_has_mean_0_and_variance_1_and_so_does_nothing_else_pass_back():
    z = (5 + 3 * drawn(8, 3)).requires_grad_()
    y = ops.batch_norm(z, None, None, training=True, eps=1e-12)
    assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    assert_close(y.square().mean(0), torch.ones(3, dtype=torch.float64))
    (grad_z,) = torch.autograd.grad(y, z, drawn(8, 3).flip(0))
    # What goes back has no mean and no component along ẑ: neither a shift nor a scale of z changes y.
    zero = torch.zeros(3, dtype=torch.float64)
    assert_close(grad_z.mean(0), zero)
    assert_close((grad_z * y).mean(0), zero)


def test_both_running_averages():
    z, m = drawn(5, 3), 5
    mean, var = z.mean(0), z.var(0, correction=0)
    for start_mean, start_var in (stats(), (drawn(3), drawn(3).abs())):
        pytorch, notes = (start_mean.clone(), start_var.clone()), (start_mean.clone(), start_var.clone())
        ops.batch_norm(z, *pytorch, training=True, momentum=0.3)
        assert_close(pytorch[0], 0.7 * start_mean + 0.3 * mean)
        assert_close(pytorch[1], 0.7 * start_var + 0.3 * var * m / (m - 1))  # the unbiased variance
        ops.batch_norm(z, *notes, training=True, average=0.7)
        assert_close(notes[0], 0.7 * start_mean + 0.3 * mean)  # the same mean: β = 1 − momentum
        assert_close(notes[1], 0.7 * start_var + 0.3 * var)  # the biased variance
        assert (pytorch[1] - notes[1]).abs().min() > 1e-3


def test_with_the_notes_average_evaluation_agrees_with_training():
    z = drawn(5, 3)
    running = stats()
    y = ops.batch_norm(z, *running, training=True, average=0.0)  # nothing of the past: the batch's own statistics
    assert_close(ops.batch_norm(z, *running), y)
    running = stats()
    ops.batch_norm(z, *running, training=True, momentum=1.0)
    assert (ops.batch_norm(z, *running) - y).abs().max() > 1e-2  # PyTorch's is off by √(m/(m − 1))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_as_pytorch_step_by_step(training: bool):
    ours, theirs = stats(), stats()
    for step in range(4):
        z = drawn(6, 3, 2) * (step + 1) + step
        mine = ops.batch_norm(z, *ours, training=training, momentum=0.2)
        assert_close(mine, F.batch_norm(z, *theirs, training=training, momentum=0.2))
        assert_close(ours, theirs)


def test_statistics_of_large_means_keep_their_digits():
    # E[z²] − μ² in float32 would be 0, or below: 1e8 against a variance of 1.
    z = 1e4 + drawn(1000, 2, dtype=torch.float32)
    exact = ops.batch_norm(z.double(), None, None, training=True)
    assert_close(ops.batch_norm(z, None, None, training=True).double(), exact, rtol=0, atol=2e-3)
    leaf, cotangent = z.clone().requires_grad_(), drawn(1000, 2, dtype=torch.float32).flip(0)
    ops.batch_norm(leaf, None, None, training=True).backward(cotangent)
    double = z.double().requires_grad_()
    ops.batch_norm(double, None, None, training=True).backward(cotangent.double())
    assert_close(leaf.grad.double(), double.grad, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_with_parameters_in_either_type(dtype: torch.dtype, training: bool):
    for kept in (torch.float32, dtype):
        z = drawn(8, 3, 4, dtype=dtype).requires_grad_()
        gamma, beta = (torch.full((3,), v, dtype=kept, requires_grad=True) for v in (1.5, 0.5))
        y = ops.batch_norm(z, *stats(dtype=kept), gamma, beta, training=training)
        assert y.dtype == dtype
        gradients = torch.autograd.grad(y.square().sum(), (z, gamma, beta))
        assert [g.dtype for g in gradients] == [dtype, kept, kept]
        exact = ops.batch_norm(z.double(), *stats(), gamma.double(), beta.double(), training=training)
        assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)


def test_nan_stays_in_its_channel():
    z = drawn(4, 2)
    z[1, 0] = torch.nan
    y = ops.batch_norm(z, None, None, training=True)
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()


def test_a_constant_channel_is_finite():
    z = torch.full((4, 2), 7.0, requires_grad=True)
    y = ops.batch_norm(z, None, None, training=True)
    assert y.tolist() == [[0.0, 0.0]] * 4
    y.square().sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_empty_batches_leave_the_statistics(training: bool):
    for shape in ((0, 3), (0, 3, 2), (2, 3, 0)):
        running = stats()
        gamma = torch.ones(3, dtype=torch.float64, requires_grad=True)
        z = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = ops.batch_norm(z, *running, gamma, training=training)
        assert y.shape == shape
        assert_close(running, stats())
        y.sum().backward()
        assert gamma.grad.tolist() == [0.0] * 3
        assert z.grad.shape == shape


@pytest.mark.parametrize("training", [True, False])
def test_no_channel_of_no_sample(training: bool):
    for running in ((torch.zeros(0), torch.ones(0)), *([(None, None)] if training else [])):
        assert ops.batch_norm(torch.zeros(0), *running, training=training).shape == (0,)
        assert F.batch_norm(torch.zeros(0), *running, training=training).shape == (0,)


def test_layouts():
    base = drawn(4, 3, 2, 6)
    views = [base.contiguous(memory_format=torch.channels_last), base[..., ::2], base.transpose(2, 3)]
    views.append(base[:, :, :1].expand(4, 3, 5, 6))
    for view in views:
        ours, theirs = view.detach().requires_grad_(), view.detach().requires_grad_()
        mine, expected = (f(x, *stats(), training=True) for f, x in ((ops.batch_norm, ours), (F.batch_norm, theirs)))
        assert_close(mine, expected)
        cotangent = drawn(*mine.shape).flip(-1)
        mine.backward(cotangent)
        expected.backward(cotangent)
        assert_close(ours.grad, theirs.grad)


def test_nothing_of_the_size_of_the_input_is_kept_but_the_input():
    saved: list[Tensor] = []
    z = drawn(8, 3, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.batch_norm(z, *stats(), torch.ones(3).double(), torch.zeros(3).double(), training=True)
    assert [t.data_ptr() for t in saved if t.numel() > 3] == [z.data_ptr()]


def test_torch_func_updates_the_statistics_it_finds():
    ours, theirs, z = stats(), stats(), drawn(5, 3)
    mine = torch.func.grad(lambda x: ops.batch_norm(x, *ours, training=True).pow(3).sum())(z)
    assert_close(mine, torch.func.grad(lambda x: F.batch_norm(x, *theirs, training=True).pow(3).sum())(z))
    assert_close(ours, theirs)


def test_compiled_it_updates_the_statistics_too():
    torch._dynamo.reset()
    compiled = torch.compile(ops.batch_norm, fullgraph=True, backend="aot_eager")
    ours, theirs = stats(), stats()
    for step in range(2):
        z = (drawn(5, 3) * (step + 1)).requires_grad_()
        mine, expected = compiled(z, *ours, training=True), F.batch_norm(z, *theirs, training=True)
        assert_close(mine, expected)
        assert_close(ours, theirs)
        assert_close(torch.autograd.grad(mine.pow(3).sum(), z), torch.autograd.grad(expected.pow(3).sum(), z))


Z = drawn(4, 3)
ONE, NONE = torch.ones(3), (None, None)
WRONG = [
    (ValueError, r"more than 1 value per channel when training, got input size \(1, 3\)", Z[:1], NONE, {"training": True}),  # noqa: E501
    (ValueError, r"input must have shape \(N, C\)", Z[0], NONE, {"training": True}),
    (ValueError, r"must be given in evaluation, got None; pass training=True", Z, NONE, {}),
    (ValueError, r"must both be given or both be None", Z, (ONE, None), {"training": True}),
    (ValueError, r"running_mean must hold one number for each of the 3 channels, got a tensor of shape \(4,\)", Z, (torch.ones(4), ONE), {}),  # noqa: E501
    (ValueError, r"weight must hold one number for each of the 3 channels", Z, (ONE, ONE), {"weight": torch.ones(3, 1)}),  # noqa: E501
    (ValueError, r"running_var must not require a gradient", Z, (ONE, torch.ones(3, requires_grad=True)), {}),
    (ValueError, r"eps must be positive during training, got 0\.0", Z, NONE, {"training": True, "eps": 0.0}),
    (ValueError, r"eps must be 0 or more, got -1\.0", Z, (ONE, ONE), {"eps": -1.0}),
    (ValueError, r"average must lie in \[0, 1\], got 1\.5", Z, (ONE, ONE), {"training": True, "average": 1.5}),
    (TypeError, r"input must be a floating-point tensor", Z.long(), NONE, {"training": True}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "z", "running", "options"), WRONG, ids=range(len(WRONG)))
def test_what_is_refused_and_how(error: type[Exception], words: str, z: Tensor, running: tuple, options: dict):
    with pytest.raises(error, match=words):
        ops.batch_norm(z, *running, **options)
    if "average" not in options:  # the twin refuses the same, with an exception of its own
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            F.batch_norm(z, *running, **options)


def test_eps_of_zero_is_allowed_in_evaluation():
    z, mean, var = drawn(5, 3), drawn(3), drawn(3).abs() + 0.5
    assert_close(ops.batch_norm(z, mean, var, eps=0.0), (z - mean) / var.sqrt())  # torch 2.11's twin refuses it


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2)])
def test_a_loss_of_the_output_and_of_the_gradient_at_once(shape: tuple[int, ...]):
    # Something then comes back to the output, to μ and to σ² in one pass.
    results = []
    for function in (ops.batch_norm, F.batch_norm):
        given = [t.requires_grad_() for t in (drawn(*shape), 1 + drawn(3).abs(), drawn(3).flip(0))]
        y = function(given[0], None, None, given[1], given[2], training=True)
        (grad_z,) = torch.autograd.grad(y.pow(3).sum(), given[0], create_graph=True)
        results.append(torch.autograd.grad(y.pow(2).sum() + grad_z.pow(2).sum(), given))
    assert_close(results[0], results[1])


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2)])
def test_third_derivatives_where_nothing_comes_back_to_the_output(shape: tuple[int, ...]):
    # Each loss is linear in what it is of, so that the second pass goes through μ and σ² alone, and is differentiated.
    def formula(z: Tensor) -> Tensor:
        over = [0, *range(2, z.dim())]
        centred = z - z.mean(over, keepdim=True)
        return centred / (centred.square().mean(over, keepdim=True) + 1e-2).sqrt()

    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        z = drawn(*shape).requires_grad_()
        cotangent = drawn(*shape).flip(0).cos()
        found = function(z)
        for power in (1, 2, 3):
            (found,) = torch.autograd.grad((found * cotangent.pow(power)).sum(), z, create_graph=power < 3)
        return found

    assert_close(third(lambda z: ops.batch_norm(z, None, None, training=True, eps=1e-2)), third(formula))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2)])
def test_many_scales_of_one_input_by_vmap(shape: tuple[int, ...], training: bool):
    # Only γ is batched, so nothing that was made of z alone can be written into.
    z, gammas = drawn(*shape), drawn(4, 3)
    running = (None, None) if training else (drawn(3), drawn(3).abs() + 0.5)

    def norm(gamma: Tensor) -> Tensor:
        return ops.batch_norm(z, *running, gamma, None, training)

    assert_close(torch.vmap(norm)(gammas), torch.stack([norm(gamma) for gamma in gammas]))
