"""Cases of the dense kernels; `test_on_a_device` runs them."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.kernels._device import DEVICE, DTYPES, TOLERANCE, counted, generator, randn
from torchnotes.ops import dense, dropout
from torchnotes.ops.kernels import mode
from torchnotes.ops.kernels.random_mask import LEVELS
from torchnotes.ops.kernels.triton_dense import DenseKernelFunction, _prologue
from torchnotes.ops.kernels.triton_dropout import kept_like
from torchnotes.ops.kernels.triton_random import draw_seed

COUNT = round(0.7 * LEVELS)
ALPHA = 0.1
# g(z), and g'(z) by a = g(z), as the notes have them
ACTIVATIONS = {
    "identity": (lambda z: z, torch.ones_like),
    "relu": (lambda z: z.clamp_min(0), lambda a: (a > 0).to(a.dtype)),
    "sigmoid": (lambda z: 1 / (1 + torch.exp(-z)), lambda a: a * (1 - a)),
    "tanh": (torch.tanh, lambda a: 1 - a * a),
    "leaky_relu": (lambda z: torch.where(z > 0, z, ALPHA * z), lambda a: torch.where(a > 0, torch.ones_like(a), ALPHA)),
}
# rows and columns that are not multiples of a tile, of 8 lanes, or of anything
SHAPES = [(8, 5, 1), (9, 3, 17), (37, 4, 130)]
CASES = [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[1], dtype) for dtype in DTYPES[1:]]


def layer(shape, dtype=torch.float32):
    rows, n_in, n_out = shape
    x = randn(rows, n_in, dtype=dtype, requires_grad=True)
    weight = randn(n_out, n_in, dtype=dtype, seed=1, requires_grad=True)
    bias = randn(n_out, dtype=dtype, seed=2, requires_grad=True)
    return x, weight, bias


@pytest.mark.parametrize("keep_prob", [0.7, 1.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_forward_and_backward_are_the_notes_equations(shape, activation, keep_prob, dtype, monkeypatch):
    x, weight, bias = layer(shape, dtype)
    with counted(monkeypatch, DenseKernelFunction) as calls:
        y = dense(
            x, weight, bias, activation=activation, keep_prob=keep_prob, negative_slope=ALPHA, generator=generator()
        )
    assert len(calls) == 1
    assert y.dtype == dtype
    g, slope = ACTIVATIONS[activation]
    d = torch.ones(y.shape, device=DEVICE, dtype=torch.float64)
    p = 1.0
    if keep_prob < 1:
        d, p = kept_like(y, draw_seed(x, generator()), COUNT).double(), COUNT / LEVELS
    # The product is rounded to the dtype before the epilogue reads it: start from that rounded product.
    z = (x @ weight.T).detach().double() + bias.detach().double()
    torch.testing.assert_close(y.detach().double(), d * g(z) / p, **TOLERANCE[dtype])

    cotangent = randn(*y.shape, dtype=dtype, seed=3)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, weight, bias), cotangent)
    a = p * y.detach().double()  # the slope is taken at the a that was returned
    grad_z = cotangent.double() * d / p * slope(a)
    rounded, _ = _prologue(
        cotangent,
        y.detach(),
        draw_seed(x, generator()) if keep_prob < 1 else None,
        activation,
        ALPHA,
        COUNT if keep_prob < 1 else LEVELS,
        False,
    )
    torch.testing.assert_close(rounded.double(), grad_z, **TOLERANCE[dtype])
    # A sum of n roundings of unit size scatters by √n of them.
    loose = {name: 4 * value * shape[0] ** 0.5 for name, value in TOLERANCE[dtype].items()}
    torch.testing.assert_close(grad_bias.double(), grad_z.sum(0), **loose)
    torch.testing.assert_close(grad_weight.double(), grad_z.T @ x.detach().double(), **loose)
    loose = {name: 4 * value * shape[2] ** 0.5 for name, value in TOLERANCE[dtype].items()}
    torch.testing.assert_close(grad_x.double(), grad_z @ weight.detach().double(), **loose)


def test_mask_is_that_of_dropout_after_the_activation():
    x, weight, bias = layer((33, 6, 20))
    with mode("always"):
        whole = dense(x, weight, bias, activation="sigmoid", keep_prob=0.5, generator=generator())
        steps = dropout(torch.sigmoid(F.linear(x, weight, bias)), keep_prob=0.5, generator=generator())
    assert torch.equal(whole == 0, steps == 0)
    torch.testing.assert_close(whole, steps)


def test_more_axes_without_bias_and_strided_tensors():
    x, weight, _ = layer((24, 6, 10))
    with mode("always"):
        flat = dense(x, weight, activation="tanh", keep_prob=0.5, generator=generator())
        folded = dense(
            x.view(4, 6, 6).transpose(0, 1).contiguous().transpose(0, 1),
            weight.t().contiguous().t(),
            activation="tanh",
            keep_prob=0.5,
            generator=generator(),
        )
    torch.testing.assert_close(folded.view(24, 10), flat)
    cotangent = randn(10, 24).t()  # strided
    expanded = randn(10).expand(24, 10)
    for grad in (cotangent, expanded):
        (strided,) = torch.autograd.grad(flat, x, grad, retain_graph=True)
        (dense_grad,) = torch.autograd.grad(flat, x, grad.contiguous(), retain_graph=True)
        assert torch.equal(strided, dense_grad)


@pytest.mark.parametrize("z", [1e-30, 1e-8, 1e-4, 0.01, 0.1, 0.3, 0.35, 1.0, 5.0, 9.0, 20.0, 1e4, 0.0, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_exact_to_a_few_roundings_everywhere(z, dtype):
    x = torch.tensor([[z]] * 4 + [[-z]] * 4, dtype=dtype, device=DEVICE)
    one = torch.ones(1, 1, dtype=dtype, device=DEVICE)
    with mode("always"):
        y = dense(x, one, activation="tanh")
    torch.testing.assert_close(y, torch.tanh(x), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_large_values(activation):
    x = torch.tensor([[float("nan")], [1e4], [-1e4], [0.0]] * 3, device=DEVICE, requires_grad=True)
    with mode("always"):
        y = dense(x, torch.ones(1, 1, device=DEVICE), activation=activation, negative_slope=ALPHA)
    y.sum().backward()
    assert y[0].isnan().all()
    assert y[1:4].isfinite().all()
    assert x.grad[1:4].isfinite().all()


def test_gradients_are_the_same_bits_on_every_run():
    x, weight, bias = layer((200, 8, 40))
    with mode("always"):
        y = dense(x, weight, bias, keep_prob=0.5, generator=generator())
    first = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y), retain_graph=True)
    second = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_derivatives_of_every_order(monkeypatch):
    x, weight, bias = (t.detach().double().requires_grad_() for t in layer((8, 1, 1)))

    def f(*args):
        return dense(*args, activation="tanh", keep_prob=0.6, generator=generator(1))

    with counted(monkeypatch, DenseKernelFunction) as calls:
        assert torch.autograd.gradcheck(f, (x, weight, bias), check_batched_grad=True)
        assert torch.autograd.gradgradcheck(f, (x, weight, bias), check_batched_grad=True)
    assert calls


def test_transforms_and_forward_mode_take_the_arithmetic(monkeypatch):
    x, weight, bias = (t.detach() for t in layer((8, 3, 4)))
    with counted(monkeypatch, DenseKernelFunction) as calls:
        grad = torch.func.grad(lambda w: dense(x, w, bias, activation="tanh").sum())(weight)
        _, dy = torch.func.jvp(lambda w: dense(x, w, bias, activation="tanh"), (weight,), (weight,))
    assert not calls
    z = x @ weight.T
    a = torch.tanh(z + bias)
    torch.testing.assert_close(grad, (1 - a * a).T @ x)
    torch.testing.assert_close(dy, (1 - a * a) * z)


def test_autocast_takes_the_product_in_the_lower_precision(monkeypatch):
    x, weight, bias = layer((16, 8, 8))
    with counted(monkeypatch, DenseKernelFunction) as calls, torch.autocast(DEVICE, torch.bfloat16):
        y = dense(x, weight, bias)
    y.float().sum().backward()
    assert len(calls) == 1
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), F.linear(x, weight, bias).clamp_min(0), rtol=2e-2, atol=3e-2)


def test_fewer_rows_than_lanes_take_the_arithmetic(monkeypatch):
    x, weight, bias = layer((7, 3, 4))
    with counted(monkeypatch, DenseKernelFunction) as calls:
        dense(x, weight, bias, keep_prob=0.5)
        dense(x[:0], weight, bias, keep_prob=0.5)
    assert not calls


def test_eight_bytes_stand_in_for_the_mask():
    saved = []
    x, weight, bias = layer((64, 4, 32))
    with mode("always"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = dense(x, weight, bias, activation="tanh", keep_prob=0.5)
    assert sorted(t.numel() * t.element_size() for t in saved) == sorted(
        t.numel() * t.element_size() for t in (x, weight, y, torch.ones(1, dtype=torch.int64))
    )
