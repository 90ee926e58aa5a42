"""Forwards that leave float64: found inside ops and modules, named, and not held to more than their own round-off."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data
from tests.gradcheck._wrong import randn
from torchnotes.gradcheck import check_function, check_gradients
from torchnotes.gradcheck._precision import rounding


class Float32Throughout(torch.autograd.Function):
    """tanh that computes in float32 in both directions, and returns float64."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x.float())
        ctx.save_for_backward(y)
        return y.double()

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return (g.float() * (1 - y * y)).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_cast_is_neither_right_nor_wrong_beyond_its_own_precision(dtype):
    report = check_function(lambda x: x.to(dtype), randn(4, 3))
    assert report.verdict == "inconclusive", str(report)
    assert f"fn returns {str(dtype).removeprefix('torch.')}" in report.reason


def test_float32_on_the_way_is_said_and_not_mistaken_for_a_wrong_gradient():
    report = check_function(Float32Throughout.apply, randn(4, 3), second_order=False)
    assert report.verdict == "suspect", str(report)
    assert "the forward computes in float32 on the way" in str(report)


def test_a_fault_larger_than_the_rounding_is_still_wrong():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x.float()

        @staticmethod
        def backward(ctx, g):
            return 2.1 * g.double()

    assert check_function(Double.apply, randn(4, 3)).verdict == "wrong"


class Norm(nn.Module):
    """Root-mean-square norm that upcasts to float32, as language models in half precision do."""

    def forward(self, x):
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)).double()


def test_the_module_that_drops_to_float32_is_named():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Tanh(), Norm()), nn.Linear(5, 3)).double()
    x, y = data()
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.verdict == "suspect", str(report)
    assert [f.name for f in report.modules if f.verdict == "suspect"] == ["1.1"]
    assert all(p.verdict != "wrong" for p in report.by_parameter.values())


def test_conversions_that_lose_nothing_do_not_count():
    x = randn(4, 3)
    assert rounding(lambda: (x > 0).float() * x) == (0.0, "")
    assert rounding(lambda: torch.ones(3, dtype=torch.float64).float()) == (0.0, "")
    assert rounding(x.float)[1] == "float32"
    assert rounding(lambda: torch.empty(4, 3, dtype=torch.bfloat16).copy_(x))[1] == "bfloat16"


def test_round_off_of_the_gradient_itself_is_not_a_fault():
    """Layer norm over one element: forward is exactly 0, backward x·r − mean·r leaves 1e-13 of rounded terms."""
    for value in (-4.8270, 3.21, 877.1):
        x = torch.tensor([value], dtype=torch.float64)
        report = check_function(lambda x, w: torch.native_layer_norm(x, (1,), w, None, 1e-5)[0], x, x.clone())
        assert report.verdict == "correct", str(report)
