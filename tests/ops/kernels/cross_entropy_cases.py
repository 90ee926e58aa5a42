"""Cases of the cross-entropy kernels; `test_on_a_device` runs them."""

import pytest
import torch

from tests.ops.kernels._device import DEVICE, DTYPES, TOLERANCE, counted, randn
from torchnotes.ops import cross_entropy
from torchnotes.ops.kernels import mode, triton_cross_entropy
from torchnotes.ops.kernels.triton_cross_entropy import CrossEntropyKernelFunction

OPTIONS = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "weighted": True},
    {"label_smoothing": 0.2, "weighted": True},
    {"reduction": "none", "label_smoothing": 1.0},
]
CASES = [(shape, torch.float32) for shape in ((1, 1), (7, 10), (5, 129), (130, 4))]
CASES += [((7, 10), dtype) for dtype in DTYPES[1:]]


def problem(samples, classes, dtype=torch.float32, weighted=False):
    z = (randn(samples, classes, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    if samples > 2:
        target[1] = -100
    weight = (randn(classes, dtype=torch.float64, seed=2).abs() + 0.1).to(dtype) if weighted else None
    return z, target, weight


def closed_form(z, target, weight, reduction="mean", label_smoothing=0.0, ignore_index=-100):
    """L = −Σ_c w_c q_c log ŷ_c with q = (1 − ε) one-hot + ε/C; and its dz = ŷ Σ w q − w q, in float64."""
    z = z.detach().double()
    classes = z.shape[1]
    kept = (target != ignore_index).double()
    w = torch.ones(classes, dtype=torch.float64, device=z.device) if weight is None else weight.double()
    y = torch.where(target == ignore_index, 0, target)
    q = torch.full_like(z, label_smoothing / classes)
    q[torch.arange(len(y)), y] += 1 - label_smoothing
    q = q * w * kept[:, None]
    shifted = z - z.max(1, keepdim=True).values
    log_yhat = shifted - shifted.exp().sum(1, keepdim=True).log()
    loss, dz = -(q * log_yhat).sum(1), log_yhat.exp() * q.sum(1, keepdim=True) - q
    if reduction == "mean":
        total = (w[y] * kept).sum()
        return loss.sum() / total, dz / total
    return (loss if reduction == "none" else loss.sum()), dz


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_value_and_gradient_are_the_closed_form(shape, options, dtype, monkeypatch):
    options = dict(options)
    z, target, weight = problem(*shape, dtype, options.pop("weighted", False))
    with counted(monkeypatch, CrossEntropyKernelFunction) as calls:
        loss = cross_entropy(z, target, weight, **options)
    assert len(calls) == 1
    expected, dz = closed_form(z, target, weight, **options)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.detach().double(), expected, **TOLERANCE[dtype])
    cotangent = randn(*loss.shape, dtype=dtype, seed=4)
    (grad_z,) = torch.autograd.grad(loss, z, cotangent)
    expected = dz * (cotangent.double().unsqueeze(-1) if loss.dim() else cotangent.double())
    torch.testing.assert_close(grad_z.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_the_running_maximum_over_several_blocks(options, monkeypatch):
    monkeypatch.setattr(triton_cross_entropy, "_FORWARD_BLOCK", 16)
    monkeypatch.setattr(triton_cross_entropy, "_BACKWARD_BLOCK", 16)
    monkeypatch.setattr(triton_cross_entropy, "_SMALL", 16)
    z, target, weight = problem(4, 75, torch.float64, weighted=True)
    with torch.no_grad():
        z[0] = z[0].sort().values  # a larger maximum in every block
        z[2, :20] = float("-inf")  # a first block with no probability at all
        z[3] += 1e4
    target[2] = 40
    if options:
        z.data[2, :20] = -50.0  # the smoothed loss of a probability of 0 is infinite
    with mode("always"):
        loss = cross_entropy(z, target, weight, **options)
    loss.backward()
    if not options:
        expected = torch.nn.functional.cross_entropy(z.detach(), target, weight)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
        assert (z.grad[2, :20] == 0).all()
        assert z.grad.isfinite().all()
    else:
        expected, dz = closed_form(z, target, weight, **options)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(z.grad, dz, rtol=1e-9, atol=1e-14)


def test_logits_of_1e4_keep_their_digits():
    """Near 1e4 a float32 is good to 1e-3: the logsumexp as one number would lose the loss's digits."""
    z = torch.tensor([[1e4, 1e4 - 1.0, -1e4]], device=DEVICE, requires_grad=True)
    with mode("always"):
        loss = cross_entropy(z, torch.tensor([0], device=DEVICE))
    loss.backward()
    p = 1 / (1 + torch.exp(torch.tensor(-1.0, dtype=torch.float64)))
    assert abs(loss.item() + p.log().item()) < 1e-7
    torch.testing.assert_close(z.grad.cpu().double(), torch.stack([p - 1, 1 - p, p * 0])[None], rtol=1e-6, atol=1e-12)


def test_nan_ignored_samples_and_classes_that_do_not_exist():
    z = torch.zeros(5, 3, device=DEVICE)
    z[0, 1] = z[3, 1] = float("nan")
    target = torch.tensor([0, 1, 3, -100, -1], device=DEVICE)
    z.requires_grad_()
    losses = triton_cross_entropy.cross_entropy(z, target, None, -100, "none", 0.0)
    losses.backward(torch.ones_like(losses))
    assert losses.isnan().tolist() == [True, False, True, False, True]
    assert losses[3] == 0
    assert z.grad.isnan().all(1).tolist() == [True, False, True, True, True]
    nothing = cross_entropy(torch.zeros(2, 3, device=DEVICE), torch.tensor([-100, -100], device=DEVICE))
    assert nothing.isnan()


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32, torch.uint8])
def test_index_types_and_strided_logits(index_dtype):
    z, target, _ = problem(6, 9)
    target = target.clamp_min(0)
    with mode("always"):
        straight = cross_entropy(z, target)
        strided = cross_entropy(z.t().contiguous().t(), target.to(index_dtype))
        cut = cross_entropy(torch.cat([z, z], 1)[:, :9], target)
        other = cross_entropy(z, target, ignore_index=int(target[0]))
    torch.testing.assert_close(strided, straight)
    torch.testing.assert_close(cut, straight)
    torch.testing.assert_close(other, torch.nn.functional.cross_entropy(z, target, ignore_index=int(target[0])))


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "label_smoothing": 0.1, "weighted": True}], ids=str)
def test_derivatives_of_every_order(options, monkeypatch):
    options = dict(options)
    z, target, weight = problem(3, 2, torch.float64, options.pop("weighted", False))
    with counted(monkeypatch, CrossEntropyKernelFunction) as calls:
        assert torch.autograd.gradcheck(
            lambda z: cross_entropy(z, target, weight, **options), z, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(
            lambda z: cross_entropy(z, target, weight, **options), z, check_batched_grad=True
        )
    assert calls


def test_transforms_and_forward_mode_take_the_arithmetic(monkeypatch):
    z, target, _ = problem(4, 5)
    z = z.detach()
    with counted(monkeypatch, CrossEntropyKernelFunction) as calls:
        grad = torch.func.grad(lambda z: cross_entropy(z, target))(z)
        _, dloss = torch.func.jvp(lambda z: cross_entropy(z, target), (z,), (torch.ones_like(z),))
    assert not calls
    torch.testing.assert_close(grad.double(), closed_form(z, target, None)[1], rtol=1e-5, atol=1e-6)
    assert abs(dloss) < 1e-6  # the loss does not change when all logits move together


def test_autocast_gives_a_float32_loss_without_a_copy_of_the_logits():
    z, target, _ = problem(6, 7, torch.bfloat16)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with mode("always"), torch.autocast(DEVICE, torch.bfloat16), hooks:
        loss = cross_entropy(z, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == torch.bfloat16
    assert [t.dtype for t in saved if t.dim() == 2] == [torch.bfloat16]  # the logits themselves
    torch.testing.assert_close(loss.item(), closed_form(z, target, None)[0].item(), rtol=1e-5, atol=0)


def test_what_has_other_axes_takes_the_arithmetic(monkeypatch):
    with counted(monkeypatch, CrossEntropyKernelFunction) as calls:
        cross_entropy(randn(3), torch.tensor(1, device=DEVICE))
        cross_entropy(randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.long, device=DEVICE))
        cross_entropy(randn(2, 3), randn(2, 3).softmax(1))
    assert not calls
