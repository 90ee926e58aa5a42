import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from tests.ops._table import seeded
from torchnotes import ops
from torchnotes.ops import kernels

ACTIVATIONS = ["relu", "sigmoid", "tanh", "leaky_relu", "identity"]


def tensors(m: int = 6, n_in: int = 3, n_out: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in ((m, n_in), (n_out, n_in), (n_out,))
    ]


@pytest.mark.parametrize(("activation", "keep_prob"), list(itertools.product(ACTIVATIONS, [1.0, 0.7])))
@pytest.mark.parametrize("rows", [6, 1500])
def test_it_is_linear_activation_dropout(activation: str, keep_prob: float, rows: int):
    # Composed of the single ops, with the same mask; the larger net draws its mask in more than one word.
    x, weight, bias = tensors(m=rows, n_out=4 if rows == 6 else 256)
    g = {**vars(ops), "identity": lambda z: z}[activation]

    def composed(x, weight, bias):
        return ops.dropout(g(ops.linear(x, weight, bias)), keep_prob=keep_prob, generator=seeded())

    def one_op(x, weight, bias):
        return ops.dense(x, weight, bias, activation=activation, keep_prob=keep_prob, generator=seeded())

    assert_close(one_op(x, weight, bias), composed(x, weight, bias))
    cotangent = torch.randn(one_op(x, weight, bias).shape, generator=seeded(2), dtype=torch.float64)
    ours = torch.autograd.grad(one_op(x, weight, bias), (x, weight, bias), cotangent)
    assert_close(ours, torch.autograd.grad(composed(x, weight, bias), (x, weight, bias), cotangent))


@pytest.mark.parametrize(
    ("activation", "keep_prob", "mask"),
    [
        ("relu", 0.7, False),
        ("sigmoid", 0.7, False),
        ("tanh", 0.7, True),
        ("leaky_relu", 0.7, True),
        ("identity", 0.7, True),
    ]
    + [(activation, 1.0, False) for activation in ACTIVATIONS],
)
def test_what_is_saved(activation: str, keep_prob: float, mask: bool):
    x, weight, bias = tensors()
    y = ops.dense(x, weight, bias, activation=activation, keep_prob=keep_prob, generator=seeded())
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert [t.data_ptr() for t in saved[:3]] == [x.data_ptr(), weight.data_ptr(), y.data_ptr()]
    assert [t.dtype for t in saved[3:]] == ([torch.bool] if mask else [])


def test_a_kept_zero_is_not_taken_for_a_dropped_one():
    # tanh and leaky ReLU of an exact 0 are 0, and so is what was dropped: only the first has a slope.
    x, weight = torch.zeros(64, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    kept = ops.dropout(torch.ones(64, 1), keep_prob=0.5, generator=seeded()) != 0
    for activation, slope in (("tanh", 1.0), ("leaky_relu", 0.25), ("identity", 1.0), ("relu", 0.0)):
        point = x.clone().requires_grad_()
        y = ops.dense(point, weight, activation=activation, keep_prob=0.5, negative_slope=0.25, generator=seeded())
        y.sum().backward()
        assert_close(point.grad, kept.double() * 2 * slope)


def test_evaluation_drops_nothing_and_draws_nothing():
    x, weight, bias = tensors()
    state = torch.get_rng_state()
    y = ops.dense(x, weight, bias, keep_prob=0.5, training=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(y, torch.relu(torch.nn.functional.linear(x, weight, bias)))


def test_bad_arguments_are_refused():
    x, weight, bias = tensors()
    with pytest.raises(
        ValueError, match="activation must be one of identity, relu, sigmoid, tanh, leaky_relu, got 'gelu'"
    ):
        ops.dense(x, weight, bias, activation="gelu")
    with pytest.raises(ValueError, match=r"keep_prob must lie in \(0, 1\], got 0"):
        ops.dense(x, weight, bias, keep_prob=0)
    with pytest.raises(
        ValueError, match=r"negative_slope must lie in \[0, inf\), got -0\.1; for a negative one compose"
    ):
        ops.dense(x, weight, bias, activation="leaky_relu", negative_slope=-0.1)
    with pytest.raises(ValueError, match=r"weight must have shape \(n_out, n_in\), got \(3,\); add the missing axis"):
        ops.dense(x, weight[0])
    with pytest.raises(ValueError, match=r"input must have shape \(\*, n_in\) with n_in = 3"):
        ops.dense(x[:, :2], weight, bias)


def test_an_unhashable_activation_is_refused_like_any_other():
    x, weight, bias = tensors()
    with pytest.raises(ValueError, match=r"activation must be one of .*, got \['relu'\]"):
        ops.dense(x, weight, bias, activation=["relu"])


@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, 1.5, 3.0])
def test_leaky_relu_of_any_slope_and_at_its_kink(slope: float, keep_prob: float):
    z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0] * 8, dtype=torch.float64).view(-1, 1)
    weight, point = torch.ones(1, 1, dtype=torch.float64), z.clone().requires_grad_()
    y = ops.dense(point, weight, activation="leaky_relu", negative_slope=slope, keep_prob=keep_prob, generator=seeded())
    mask = ops.dropout(torch.ones_like(z), keep_prob=keep_prob, generator=seeded())
    assert_close(y.detach(), torch.where(z > 0, z, slope * z) * mask)
    y.sum().backward()
    assert_close(point.grad, torch.where(z > 0, 1.0, slope).double() * mask)  # α at 0, as PyTorch has it


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_many_masks_of_one_input_by_vmap(activation: str):
    # As for averaging over masks at test time: only the mask is batched, so nothing else can be written into.
    x, weight, bias = (t.detach() for t in tensors(m=30))

    def once(_: torch.Tensor) -> torch.Tensor:
        return ops.dense(x, weight, bias, activation=activation, keep_prob=0.5)

    drawn = torch.vmap(once, randomness="different")(torch.zeros(3))
    kept = drawn != 0
    assert_close(drawn, 2 * ops.dense(x, weight, bias, activation=activation) * kept)
    assert not torch.equal(kept[0], kept[1])


def test_what_a_kernel_is_told_to_keep(monkeypatch: pytest.MonkeyPatch):
    # The kernel itself has cases of its own; this is what stands before it.
    told: list[int | None] = []
    monkeypatch.setattr(
        kernels, "triton_dense", SimpleNamespace(dense=lambda *given: told.append(given[5])), raising=False
    )
    monkeypatch.setattr(sys.modules["torchnotes.ops.dense"], "dense_chosen", lambda *_: True)
    for training, keep_prob in ((True, 0.5), (True, 1.0), (False, 0.5), (False, 1.0)):
        ops.dense(*tensors(), keep_prob=keep_prob, training=training)
    assert told == [32768, None, None, None]  # of 65536; None leaves dropout out
