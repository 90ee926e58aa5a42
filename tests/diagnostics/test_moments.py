"""Moments against the same quantities in exact or 64-bit arithmetic, on both paths: the host's and the device's."""

import math
from fractions import Fraction

import pytest
import torch

from torchnotes.diagnostics._moments import _on_device, flat_ends, from_row, measure, moments, resolve
from torchnotes.diagnostics.lean import Lean
from torchnotes.diagnostics.lean_compiled import Compiled
from torchnotes.diagnostics.measuring import Shipment


def on_device(tensor, ends=None):
    """The path of other devices, which is plain torch and runs on the CPU too."""
    return from_row(_on_device(tensor, ends).tolist())


def beside_training(tensor, ends=None, way=Lean):
    """What a monitor takes: bare sums where they will do."""
    lean = way(Shipment())
    return lean.resolve([lean.output(tensor, ends, -1)])[0]


def compiled(tensor, ends=None):
    """The same in one compiled pass."""
    return beside_training(tensor, ends, Compiled)


PATHS = pytest.mark.parametrize(
    "take",
    [moments, on_device, beside_training, compiled],
    ids=["host", "device", "host, beside training", "host, compiled"],
)
WAYS = pytest.mark.parametrize("way", [Lean, Compiled])


def exact(values):
    """Rational arithmetic on the very bits: no rounding until the last step."""
    x = [Fraction(v) for v in values]
    mean = sum(x) / len(x)
    return mean, sum(v * v for v in x) / len(x), sum((v - mean) ** 2 for v in x) / len(x)


@PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_against_rational_arithmetic(take, dtype, scale):
    x = (torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale).to(dtype)
    if not x.isfinite().all():
        pytest.skip("float16 holds nothing near 1e30")
    mean, square, variance = exact(x.flatten().tolist())
    found = take(x)
    if square == 0:
        assert found.log10_rms == -math.inf
        return
    # float32 accumulation over 77 terms: a few times 6e-8.
    assert found.rms == pytest.approx(math.sqrt(square), rel=1e-6)
    assert found.log10_rms == pytest.approx(math.log10(math.sqrt(square)), abs=1e-6)
    assert found.mean == pytest.approx(float(mean), abs=1e-6 * math.sqrt(square))
    assert found.std == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert found.max_abs == x.abs().max().item()
    assert (found.count, found.nonfinite) == (77, 0)


@PATHS
def test_a_gradient_of_1e_minus_30_is_reported_as_1e_minus_30(take):
    """Its square, 1e-60, is 0 in float32."""
    x = torch.full((50, 50), 1e-30)
    assert x.square().mean() == 0
    assert take(x).log10_rms == pytest.approx(-30, abs=1e-6)
    assert take(x).rms == pytest.approx(1e-30, rel=1e-6)


@PATHS
def test_squares_that_overflow(take):
    x = torch.full((50, 50), -1e30)
    assert x.square().mean() == math.inf
    assert take(x).log10_rms == pytest.approx(30, abs=1e-6)
    assert take(x).std == pytest.approx(0, abs=1e24)


@PATHS
def test_no_cancellation_where_the_mean_is_large(take):
    """E[x²] − E[x]² has no digit left here: the squares are 1e16 and the variance 16."""
    x = torch.tensor([1e8, 1e8 + 8]).repeat(500)
    assert take(x).std == pytest.approx(4.0, rel=1e-6)
    assert take(x).mean == pytest.approx(1e8 + 4)


@PATHS
def test_non_finite_values_are_counted_and_left_out(take):
    found = take(torch.tensor([3.0, math.nan, -4.0, math.inf, 0.0, -math.inf]))
    assert (found.count, found.nonfinite) == (6, 3)
    assert found.rms == pytest.approx(math.sqrt(25 / 3))
    assert found.max_abs == 4
    assert found.share_zero == pytest.approx(1 / 6)


@PATHS
def test_nothing_finite_and_nothing_at_all(take):
    none = take(torch.full((3,), math.nan))
    assert (none.count, none.nonfinite) == (3, 3)
    assert math.isnan(none.rms)
    empty = take(torch.empty(0, 5))
    assert (empty.count, empty.nonfinite) == (0, 0)
    assert math.isnan(empty.log10_rms)


@PATHS
def test_zeros_and_saturation(take):
    x = torch.tensor([0.0, 0.5, 0.99, -1.0, 0.0])
    found = take(x, flat_ends(torch.nn.Tanh()))
    assert (found.share_zero, found.share_saturated) == (0.4, 0.4)
    assert take(x).share_saturated is None
    assert take(torch.zeros(4)).log10_rms == -math.inf


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t(),
        lambda x: x[::2, 1:],
        lambda x: x.reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        lambda x: x[:, :1].expand(-1, 7),
        lambda x: x.requires_grad_().mul(2),
        lambda x: x.to_sparse(),
        lambda x: x.flatten()[5],
    ],
)
def test_any_layout(change):
    x = change(torch.randn(12, 10, generator=torch.Generator().manual_seed(1)))
    values = x.detach().to_dense() if x.is_sparse else x.detach()
    assert moments(x).rms == pytest.approx(values.double().square().mean().sqrt().item(), rel=1e-6)


def test_a_large_tensor_keeps_its_digits():
    """4 million float32 terms in one accumulator would lose three digits; in pieces they keep six."""
    x = torch.rand(4_000_000, generator=torch.Generator().manual_seed(2)) + 0.5
    found = moments(x)
    assert found.rms == pytest.approx(x.double().square().mean().sqrt().item(), rel=1e-6)
    assert found.mean == pytest.approx(x.double().mean().item(), rel=1e-6)


def test_one_copy_for_many(monkeypatch):
    """Vectors from one device come back together: the copies are counted."""
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(tuple(self.shape)) or real(self))
    vectors = [_on_device(torch.full((4,), float(i)), None) for i in range(9)]
    found = resolve([vectors[0], None, measure(torch.ones(2)), *vectors[1:]])
    assert copies == [(9, 8)]
    assert [item.mean for item in found[3:]] == [float(i) for i in range(1, 9)]


@pytest.mark.parametrize("shape", [(70_000,), (300, 400), (2, 3, 64, 64)])
@WAYS
def test_sums_of_large_tensors_beside_training(shape, way):
    """More values than fit into one piece."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).relu() - 0.1
    x[x == -0.1] = 0.0
    found, wide = beside_training(x, way=way), x.double()
    assert found.rms == pytest.approx(wide.square().mean().sqrt().item(), rel=1e-6)
    assert found.mean == pytest.approx(wide.mean().item(), rel=1e-5)
    assert found.std == pytest.approx(wide.std(correction=0).item(), rel=1e-6)
    assert found.max_abs == x.abs().max().item()
    assert found.share_zero == (x == 0).double().mean().item()


@WAYS
def test_short_and_long_parameters_are_measured_alike(way):
    """Short ones are joined to one vector, long ones not; tiny, huge, zero and broken ones among them."""
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(n, generator=generator) for n in (1, 7, 300, 5000, 70_000)]
    tensors += [torch.full((n,), v) for n in (5, 5000) for v in (0.0, 1e-30, -1e30, math.nan)]
    lean = way(Shipment())
    for tensor, found in zip(tensors, lean.resolve(lean.parameters(tensors)), strict=True):
        known = moments(tensor)
        assert (found.count, found.nonfinite) == (known.count, known.nonfinite)
        assert (found.rms, found.max_abs) == pytest.approx((known.rms, known.max_abs), rel=1e-6, nan_ok=True)
