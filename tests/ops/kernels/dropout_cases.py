"""Cases of the dropout kernel; `test_on_a_device` runs them."""

import numpy as np
import pytest
import torch

from tests.ops.kernels._device import DEVICE, DTYPES, TOLERANCE, counted, generator, randn
from torchnotes.ops import dropout
from torchnotes.ops.kernels import mode
from torchnotes.ops.kernels.random_mask import LEVELS
from torchnotes.ops.kernels.triton_dropout import DropoutKernelFunction, kept_like
from torchnotes.ops.kernels.triton_random import draw_seed, lane_stride

SHAPES = [(), (1,), (7,), (1000,), (8, 3), (9, 7), (37, 53), (3, 700), (4, 5, 6), (2049,)]


def philox(key, counter):
    """Philox-4x32-10 as its authors print it (Salmon et al. 2011, section 3.3), on Python integers."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (high >> 32) ^ c1 ^ k0,
            high & 0xFFFFFFFF,
            (low >> 32) ^ c3 ^ k1,
            low & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def test_the_reference_generator_gives_its_authors_known_answers():
    assert philox(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox(ones << 32 | ones, (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("shape", [(1000,), (11, 13), (3, 50)])
def test_mask_is_the_one_of_the_written_rule(shape):
    seed, count = 0x123456789ABCDEF0, 40000
    x = torch.ones(shape, device=DEVICE)
    mask = kept_like(x, torch.tensor([seed], device=DEVICE), count).flatten().tolist()
    stride = lane_stride(x.shape)
    for element in range(x.numel()):
        lane, counter = divmod(element, stride)
        word = philox(seed, (counter, 0, 0, 0))[lane // 2]
        assert mask[element] == ((word >> 16 * (lane % 2)) & 0xFFFF < count), element


def test_an_element_is_kept_from_the_count_above_its_bits_on():
    x, seed = torch.ones(64, device=DEVICE), torch.tensor([7], device=DEVICE)
    words = philox(7, (0, 0, 0, 0))
    for lane in range(8):
        bits = (words[lane // 2] >> 16 * (lane % 2)) & 0xFFFF
        element = lane * lane_stride(x.shape)
        assert not kept_like(x, seed, bits)[element]
        assert kept_like(x, seed, bits + 1)[element]


def test_a_negative_seed_is_its_64_bits():
    x = torch.ones(64, device=DEVICE)
    mask = kept_like(x, torch.tensor([-1], device=DEVICE), 40000).tolist()
    words = [philox((1 << 64) - 1, (counter, 0, 0, 0)) for counter in range(8)]
    assert mask[:8] == [word[0] & 0xFFFF < 40000 for word in words]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_are_the_arithmetic_with_one_mask(shape, dtype, monkeypatch):
    x = randn(*shape, dtype=dtype, requires_grad=True)
    cotangent = randn(*shape, dtype=dtype, seed=1)
    with counted(monkeypatch, DropoutKernelFunction) as calls:
        y = dropout(x, keep_prob=0.7, generator=generator())
    assert len(calls) == 1
    (grad_x,) = torch.autograd.grad(y, x, cotangent)
    count = round(0.7 * LEVELS)
    d = kept_like(x, draw_seed(x, generator()), count).double() * (LEVELS / count)
    torch.testing.assert_close(y.double(), x.double() * d, **TOLERANCE[dtype])
    torch.testing.assert_close(grad_x.double(), cotangent.double() * d, **TOLERANCE[dtype])
    assert y.dtype == grad_x.dtype == dtype


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_empty(shape):
    x = torch.ones(shape, device=DEVICE, requires_grad=True)
    with mode("always"):
        y = dropout(x, keep_prob=0.5)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_same_state_same_mask_whatever_the_layout():
    x = randn(24, 10)
    layouts = [x, x.t().contiguous().t(), torch.stack([x, x], -1)[..., 0], x.view(24, 10).as_strided((24, 10), (10, 1))]
    with mode("always"):
        results = [dropout(layout, keep_prob=0.5, generator=generator()) for layout in layouts]
        other = dropout(x, keep_prob=0.5, generator=generator(1))
        expanded = dropout(x[:1].expand(24, 10), keep_prob=0.5, generator=generator())
    for result in results:
        assert torch.equal(result, results[0])
    assert torch.equal(expanded != 0, results[0] != 0)
    assert not torch.equal(other, results[0])


def test_passes_differ_and_the_global_generator_is_used_without_one():
    x = torch.ones(512, device=DEVICE)
    torch.manual_seed(0)
    with mode("always"):
        first, second = dropout(x, keep_prob=0.5), dropout(x, keep_prob=0.5)
        torch.manual_seed(0)
        again = dropout(x, keep_prob=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("keep_prob", [0.9, 0.8, 0.7, 0.5, 0.3])
def test_law(keep_prob):
    """E[y] = x and Var[y] = (1 − p)/p for x = 1, to within 4.5 of their own standard errors; lanes are independent."""
    n = 1 << 17
    with mode("always"):
        y = dropout(torch.ones(n, device=DEVICE), keep_prob=keep_prob, generator=generator(3)).cpu().numpy()
    p = round(keep_prob * LEVELS) / LEVELS
    assert set(np.unique(y)) == {0.0, np.float32(1 / p)}
    assert abs(y.mean(dtype=np.float64) - 1) < 4.5 * ((1 - p) / p / n) ** 0.5
    d = (y > 0).astype(np.float64)
    stride = n // 8
    for lag in (1, 2, 8, stride, 2 * stride, 7 * stride):  # neighbours, and the lanes of one call
        m = n - lag
        covariance = np.mean((d[lag:] - p) * (d[:m] - p))
        assert abs(covariance) < 4.5 * p * (1 - p) / m**0.5, lag
    for lane in d.reshape(8, stride):
        assert abs(lane.mean() - p) < 4.5 * (p * (1 - p) / stride) ** 0.5


@pytest.mark.parametrize("count", [1, 65535])
def test_ends_of_the_range(count):
    x = torch.ones(1 << 15, device=DEVICE)
    share = kept_like(x, draw_seed(x, generator()), count).double().mean().item()
    assert abs(share - count / LEVELS) < 3e-4  # one step is 1.5e-5; 32768 samples scatter by 2.2e-5


def test_nan_stays_nan():
    with mode("always"):
        y = dropout(torch.full((64,), float("nan"), device=DEVICE), keep_prob=0.5)
    assert y.isnan().all()


def fixed_mask(x):
    return dropout(x, keep_prob=0.6, generator=generator(5))


def test_derivatives_of_every_order(monkeypatch):
    x = randn(9, 1, dtype=torch.float64, requires_grad=True)
    with counted(monkeypatch, DropoutKernelFunction) as calls:
        assert torch.autograd.gradcheck(fixed_mask, x, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(fixed_mask, x, check_batched_grad=True)
    assert calls


def test_second_backward_has_the_mask_of_the_first():
    x = randn(20, 6, requires_grad=True)
    cotangent = randn(20, 6, seed=1, requires_grad=True)
    with mode("always"):
        y = fixed_mask(x)
    (grad_x,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
    (grad_cotangent,) = torch.autograd.grad(grad_x, cotangent, torch.ones_like(x))
    torch.testing.assert_close(grad_cotangent * x.detach(), y.detach(), rtol=1e-6, atol=0)


def test_transforms_and_forward_mode_take_the_arithmetic(monkeypatch):
    x = randn(12, 3)
    tangent = randn(12, 3, seed=1)
    with counted(monkeypatch, DropoutKernelFunction) as calls:
        y, dy = torch.func.jvp(fixed_mask, (x,), (tangent,))
        torch.testing.assert_close(dy, tangent * (y / x))
        grad = torch.func.grad(lambda x: fixed_mask(x).sum())(x)
        torch.testing.assert_close(grad, y / x)
        batched = torch.vmap(lambda x: dropout(x, keep_prob=0.5), randomness="different")(x)
        assert batched.shape == x.shape
    assert not calls


def test_only_the_seed_is_saved():
    saved = []
    x = randn(64, 64, requires_grad=True)
    with mode("always"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x, keep_prob=0.5)
    assert sum(t.numel() * t.element_size() for t in saved) == 8


def test_input_and_gradient_are_left_unmodified():
    x, cotangent = randn(40, requires_grad=True), randn(40, seed=1)
    copies = x.detach().clone(), cotangent.clone()
    with mode("always"):
        fixed_mask(x).backward(cotangent)
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(cotangent, copies[1])
