"""Where an op takes another way because it is quicker: it comes to the same, and goes that way only where it may."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from torchnotes import ops
from torchnotes.ops import _activation, _channels, _function, kernels
from torchnotes.ops.kernels import memory, random_mask


def logits(n: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


def way(loss: Tensor) -> str:
    assert loss.grad_fn is not None
    return type(loss.grad_fn).__name__.removesuffix("CrossEntropyFunctionBackward")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cross_entropy_in_few_calls_is_that_of_pytorch(reduction: str, dtype: torch.dtype):
    z = logits(dtype=dtype)
    ours, twin = ops.cross_entropy(z, LABELS, reduction=reduction), F.cross_entropy(z, LABELS, reduction=reduction)
    assert way(ours) == "Counted"
    assert_close(ours, twin)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert_close(torch.autograd.grad(ours, z, cotangent), torch.autograd.grad(twin, z, cotangent))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_derivatives_of_cross_entropy_and_batches_of_its_gradients(reduction: str):
    z = logits()
    assert gradgradcheck(lambda z: ops.cross_entropy(z, LABELS, reduction=reduction), z)
    loss = ops.cross_entropy(z, LABELS, reduction=reduction)
    cotangents = torch.randn(3, *loss.shape, generator=torch.Generator().manual_seed(2), dtype=z.dtype)
    (batched,) = torch.autograd.grad(loss, z, cotangents, retain_graph=True, is_grads_batched=True)
    assert_close(batched, torch.stack([torch.autograd.grad(loss, z, c, retain_graph=True)[0] for c in cotangents]))


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"target": LABELS.clone().index_fill_(0, torch.tensor([2]), -100)}, {}),
        ({}, {"ignore_index": 1}),
        ({}, {"label_smoothing": 0.1}),
        ({}, {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)}),
        ({"target": LABELS.int()}, {}),
        ({"input": logits(6, (1 << 15) // 6 + 1), "target": LABELS}, {}),
    ],
    ids=["a sample is ignored", "a class is ignored", "smoothing", "weight", "int32", "many"],
)
def test_what_cross_entropy_cannot_do_in_few_calls_goes_the_other_way(
    changed: dict[str, Tensor], options: dict[str, object]
):
    given = {"input": logits(), "target": LABELS, **changed}
    ours = ops.cross_entropy(**given, **options)
    assert way(ours) == ""
    given["target"] = given["target"].long()
    twin = F.cross_entropy(**given, **options)
    assert_close(ours, twin)
    assert_close(torch.autograd.grad(ours, given["input"]), torch.autograd.grad(twin, given["input"]))


@pytest.mark.parametrize("label", [4, -1, -(1 << 63)])  # the last is what NaN becomes as an integer
def test_cross_entropy_refuses_a_label_out_of_range_in_few_calls_too(label: int):
    with pytest.raises(IndexError, match="target must hold class indices in"):
        ops.cross_entropy(logits(), LABELS.clone().index_fill_(0, torch.tensor([2]), label))


def test_cross_entropy_of_half_precision_keeps_a_sum_of_its_own():
    z = logits(dtype=torch.float32).detach().to(torch.bfloat16).requires_grad_()
    assert way(ops.cross_entropy(z, LABELS)) == ""


def test_numbers_made_once_stay_as_they_are():
    x = torch.linspace(-2, 2, 5, requires_grad=True)
    ops.sigmoid(x).sum().backward()
    ops.cross_entropy(logits(), LABELS).backward()
    assert all(made.item() == number for (number, _), made in _function._NUMBERS.items())
    assert (
        _function.number_beside(1.0, torch.zeros(2)).data_ptr() == _function.number_beside(1.0, x.detach()).data_ptr()
    )
    assert _function.number_beside(1.0, torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sigmoid_keeps_the_digits_of_its_slope_near_one():
    # (1 − y) y with 1 − y exact: an error of a few roundings of the slope, where ȳy − ȳy·y loses digits of it.
    x = torch.linspace(8, 14, 50, requires_grad=True)
    y = torch.sigmoid(x.detach())
    (slope,) = torch.autograd.grad(ops.sigmoid(x).sum(), x)
    exact = (1 - y.double()) * y.double()
    assert ((slope.double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact).all()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sigmoid_keeps_the_digits_of_its_slope_everywhere(
    large: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    # σ'(x) = e⁻|x| / (1 + e⁻|x|)² in float64; y is one rounding off, which 1 − y magnifies to ε / (1 − y), no more.
    monkeypatch.setattr(memory, "LARGE", 1 if large else 1 << 40)
    x = torch.linspace(-80, 14, 941, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(ops.sigmoid(x), x, torch.ones_like(x))
    z = torch.exp(-x.detach().double().abs())
    exact, lost = z / (1 + z) ** 2, (1 + torch.exp(x.detach().double())).clamp_min(1)  # 1 / (1 − y)
    assert ((slope.double() - exact).abs() <= 8 * torch.finfo(dtype).eps * lost * exact).all()
    for gradient in (torch.inf, torch.nan):  # as PyTorch has it
        given = torch.full_like(x, gradient)
        ours, twin = (torch.autograd.grad(f(x), x, given)[0] for f in (ops.sigmoid, torch.sigmoid))
        assert_close(ours, twin, rtol=0, atol=0, equal_nan=True)


def test_a_factor_made_once_is_rounded_as_the_number_is():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.linspace(1, 2, 100, dtype=dtype)
        assert torch.equal(x * _function.factor_beside(10 / 7, x), x * (10 / 7))
    x = torch.zeros(2)
    assert _function.factor_beside(10 / 7, x) is _function.factor_beside(10 / 7, x)
    assert _function.factor_beside(10 / 7, x.bfloat16()) == 10 / 7
    with torch.inference_mode():
        made = _function.factor_beside(11 / 7, torch.zeros(2))
    assert not made.is_inference()
    torch.vmap(lambda x: x * _function.factor_beside(12 / 7, x))(x)
    assert _function._factor.cache_info().maxsize is not None


def test_the_node_of_an_op_calls_its_backward_at_once():
    y = ops.relu(torch.ones(1, requires_grad=True))
    assert type(y.grad_fn).apply is ops.relu.__globals__["ReLUFunction"].backward


class Counted(TorchDispatchMode):
    """The names of the ATen calls made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("op", "calls"),
    [
        (ops.relu, ["clamp_min", "sign", "mul"]),
        (ops.leaky_relu, ["leaky_relu", "sign", "clamp_min", "mul"]),
        (ops.sigmoid, ["sigmoid", "lerp", "mul"]),
        (ops.tanh, ["tanh", "mul", "addcmul"]),
        (lambda x: ops.dropout(x, keep_prob=0.8), ["empty", "bernoulli", "mul", "mul", "mul", "mul"]),
        (
            lambda x: ops.cross_entropy(x.reshape(1, -1), LABELS[:1]),
            ["_log_softmax", "nll_loss_forward", "_softmax", "scatter_add_", "addcmul"],
        ),
    ],
    ids=["relu", "leaky_relu", "sigmoid", "tanh", "dropout", "cross_entropy"],
)
def test_one_element_takes_no_more_calls_than_its_arithmetic(op: Callable[[Tensor], Tensor], calls: list[str]):
    # Where there is one element, the calls are the time: one more is a tenth of the pass.
    x = torch.randn(1, requires_grad=True)
    cotangent = torch.ones_like(op(x))
    with Counted() as counted:
        torch.autograd.grad(op(x), x, cotangent)
    views = ("view", "_unsafe_view", "expand", "unsqueeze", "detach", "alias", "slice")
    assert [name for name in counted.names if name not in views] == calls


@pytest.mark.parametrize("size", [1, random_mask._FEW, random_mask._FEW + 1])
def test_a_mask_of_few_elements_has_the_law_of_one_of_many(size: int):
    generator = torch.Generator().manual_seed(0)
    draws = 200_000 // size
    count = random_mask.realised_count(0.8)
    kept = sum(int(random_mask.keep_mask((size,), torch.device("cpu"), count, generator).sum()) for _ in range(draws))
    deviation = math.sqrt(draws * size * 0.8 * 0.2)
    assert abs(kept - draws * size * count / random_mask.LEVELS) < 4 * deviation


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_dropout_piece_by_piece(layout: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(random_mask, "_SMALL", 1)
    monkeypatch.setattr(random_mask, "_BLOCK", 7)  # 60 elements in nine pieces
    base = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    x = {"contiguous": base[:, :10].clone(), "transposed": base[:, :10].T, "strided": base[:, ::2]}[layout]
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    cut: list[int] = []
    split = Tensor.split
    monkeypatch.setattr(Tensor, "split", lambda t, size: (cut.append(size), split(t, size))[1])
    with torch.no_grad():  # where somebody differentiates there are no pieces
        assert torch.equal(random_mask.scale_kept(x, mask, 1.25), x * mask * 1.25)
    assert cut == ([7, 7, 7] if layout == "contiguous" else [])


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "leaky_relu", "identity"])
@pytest.mark.parametrize("layout", ["contiguous", "expanded"])
def test_dense_piece_by_piece(activation: str, layout: str, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in ((9, 3), (5, 3), (5,))]
    cotangent = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    if layout == "expanded":
        cotangent = cotangent[:1].expand(9, 5)

    def value_and_gradients() -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        y = ops.dense(*given, activation=activation, keep_prob=0.7, negative_slope=0.1, generator=generator)
        return [y.detach(), *torch.autograd.grad(y, given, cotangent)]

    expected = value_and_gradients()
    pieces: list[int] = []
    whole = _activation.in_pieces

    def counted(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
        cut = list(whole(*tensors))
        pieces.append(len(cut))
        return cut

    monkeypatch.setattr(_activation, "in_pieces", counted)
    monkeypatch.setattr(_activation, "_PIECE", 7)  # 45 elements in seven pieces
    for ours, at_once in zip(value_and_gradients(), expected, strict=True):
        assert_close(ours, at_once)
    backward = [] if activation == "identity" else [7 if layout == "contiguous" else 1]
    assert pieces == [7, *backward]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batch_norm_of_images_some_samples_at_a_time(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_channels, "_PIECE", 2 * 3 * 4 * 5)  # two samples of seven, the last alone
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 3, 4, 5, generator=generator, dtype=torch.float64).to(memory_format=memory_format)
    gamma, beta = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(7, 3, 4, 5, generator=generator, dtype=torch.float64)
    results = []
    for function in (ops.batch_norm, F.batch_norm):
        given = [t.clone().requires_grad_() for t in (z, gamma, beta)]
        y = function(given[0], None, None, given[1], given[2], training=True)
        results.append([y.detach(), *torch.autograd.grad(y, given, cotangent)])
    for ours, twin in zip(*results, strict=True):
        assert_close(ours, twin)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_parameters", [True, False])
def test_batch_norm_some_samples_at_a_time_in_evaluation_and_without_parameters(
    training: bool, with_parameters: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_channels, "_PIECE", 2 * 3 * 4 * 5)
    generator = torch.Generator().manual_seed(0)
    z, cotangent = torch.randn(2, 7, 3, 4, 5, generator=generator, dtype=torch.float64)
    gamma, beta, mean, var = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    results = []
    for function in (ops.batch_norm, F.batch_norm):
        given = [t.clone().requires_grad_() for t in ((z, gamma, beta) if with_parameters else (z,))]
        running = mean.clone(), var.clone()
        y = function(given[0], *running, *given[1:], training=training)
        results.append([y.detach(), *running, *torch.autograd.grad(y, given, cotangent)])
    for ours, twin in zip(*results, strict=True):
        assert_close(ours, twin)


def test_batch_norm_goes_by_samples_only_for_many_images_and_where_nobody_looks_on():
    x, mean = torch.zeros(3, 2, 1 << 18), torch.zeros(2)
    assert isinstance(_channels.centre(x, mean, alone=True), _channels.CentredBySamples)
    assert isinstance(_channels.centre(x, mean, alone=False), _channels.Centred)
    assert isinstance(_channels.centre(x[:1], mean, alone=True), _channels.Centred)  # it is in the cache as it is
    assert isinstance(_channels.centre(x.reshape(-1, 2), mean, alone=True), _channels.Centred)
    assert [len(piece) for piece in _channels.CentredBySamples(x, mean).pieces] == [1, 1, 1]
    assert len(_channels.CentredBySamples(torch.zeros(9, 2, 1 << 16), mean).pieces[0]) == 4


STATISTICS = ["batch_norm_update_stats", "sub"]
ONE_BY_ONE = ["mean", "sub", "mul", "mean"]
NORMALISED = ["add", "rsqrt", "mul", "addcmul"]
BACK = ["sub", "add", "rsqrt", "mul", "sum", "mul", "sum", "mul", "mul", "mul", "mul", "mul", "addcmul", "addcmul"]


@pytest.mark.parametrize(("samples", "first"), [(1 << 10, STATISTICS), ((1 << 10) + 1, ONE_BY_ONE)])
def test_batch_norm_of_a_matrix_takes_no_more_calls_than_its_arithmetic(samples: int, first: list[str]):
    z, gamma, beta = (torch.ones(shape, requires_grad=True) for shape in ((samples, 2), 2, 2))
    cotangent = torch.ones(samples, 2)
    with Counted() as counted:
        y = ops.batch_norm(z, None, None, gamma, beta, training=True)
        torch.autograd.grad(y, (z, gamma, beta), cotangent)
    assert [name for name in counted.names if name != "detach"] == [*first, *NORMALISED, *BACK]


@pytest.mark.parametrize("layout", ["transposed", "stepped", "expanded"])
def test_batch_norm_of_a_matrix_in_any_layout(layout: str):
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = {"transposed": base.T, "stepped": base[:, ::2], "expanded": base[:, :1].expand(6, 3)}[layout].detach()
    gradients = []
    for function in (ops.batch_norm, F.batch_norm):
        given = z.requires_grad_()
        y = function(given, None, None, training=True)
        gradients.append((y.detach(), *torch.autograd.grad(y.pow(3).sum(), given)))
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("samples", [64, 1024, 30_000])
def test_batch_norm_of_a_matrix_loses_no_more_digits_than_pytorch(mean: float, samples: int):
    generator = torch.Generator().manual_seed(0)
    z = mean + torch.randn(samples, 16, generator=generator)
    gamma, beta = torch.randn(2, 16, generator=generator)
    cotangent = torch.randn(samples, 16, generator=generator) + (z - mean)

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [t.to(dtype).requires_grad_() for t in (z, gamma, beta)]
        y = function(given[0], None, None, given[1], given[2], training=True)
        return [y.detach(), *torch.autograd.grad(y, given, cotangent.to(dtype))]

    exact = results(F.batch_norm, torch.float64)
    for ours, twin, expected in zip(
        results(ops.batch_norm, torch.float32), results(F.batch_norm, torch.float32), exact, strict=True
    ):
        errors = [(t.double() - expected).square().mean().sqrt() for t in (ours, twin)]
        # Roundings are as good as random: of two ways that lose alike, either may be ahead by a part of its error.
        assert errors[0] <= 1.5 * errors[1]


def test_cross_entropy_of_a_parameter_has_the_gradient_of_any_tensor():
    z, leaf = torch.nn.Parameter(logits().detach()), logits()
    ours, twin = ops.cross_entropy(z, LABELS), F.cross_entropy(leaf, LABELS)
    assert way(ours) == "Counted"
    assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(twin, leaf))


@pytest.mark.parametrize(
    ("target", "options", "calls"),
    [
        (LABELS, {}, ["_softmax", "unsqueeze", "scatter_add_", "addcmul"]),
        (
            LABELS.int(),
            {"reduction": "sum"},
            ["exp", "ne", "mul", "ones", "where", "mul", "unsqueeze", "mul_", "unsqueeze", "neg", "scatter_add_"],
        ),
        (
            torch.full((6, 4), 0.25),
            {"reduction": "sum"},
            ["expand", "unsqueeze", "neg", "mul", "exp", "sum", "addcmul"],
        ),
    ],
    ids=["few", "indices", "probabilities"],
)
def test_the_backward_of_cross_entropy_takes_no_more_calls_than_its_arithmetic(
    target: Tensor, options: dict[str, str], calls: list[str]
):
    # Nothing is made of the second output, which nobody used, nor of the probabilities, of which nobody asks anything.
    z = logits(dtype=torch.float32)
    loss = ops.cross_entropy(z, target, **options)
    cotangent = torch.ones_like(loss)
    with Counted() as counted:
        torch.autograd.grad(loss, z, cotangent)
    assert [name for name in counted.names if name not in ("detach", "scalar_tensor")] == calls


def test_cross_entropy_takes_its_kernel_for_a_matrix_of_logits_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["torchnotes.ops.cross_entropy"], "chosen", lambda *_: True)
    kernel = SimpleNamespace(cross_entropy=lambda z, *_: z.new_full((), 42.0))
    monkeypatch.setattr(kernels, "triton_cross_entropy", kernel, raising=False)
    z = logits().detach()
    assert ops.cross_entropy(z, LABELS) == 42
    for others, target in ((z[0], LABELS[0]), (z.view(2, 4, 3), LABELS.view(2, 3)), (z[:0], LABELS[:0])):
        ours, twin = (f(others, target, reduction="sum") for f in (ops.cross_entropy, F.cross_entropy))
        assert_close(ours, twin)
