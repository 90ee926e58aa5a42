import re

import pytest
import torch
from torch.testing import assert_close

from torchnotes.ops import linear


def test_the_notes_equations_with_samples_as_columns():
    # z = W a + b, dW = dz aᵀ, db = Σ dz, da = Wᵀ dz, computed as written on the transposes.
    generator = torch.Generator().manual_seed(0)
    a, w, b, dz = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 5), (4, 3), (4, 1), (4, 5)))
    x, weight, bias = (t.requires_grad_() for t in (a.T.clone(), w.clone(), b[:, 0].clone()))
    y = linear(x, weight, bias)
    assert_close(y.T, w @ a + b)
    y.backward(dz.T)
    assert_close(weight.grad, dz @ a.T)
    assert_close(bias.grad, dz.sum(dim=1))
    assert_close(x.grad.T, w.T @ dz)
    assert weight.grad.shape == weight.shape
    assert bias.grad.shape == bias.shape


def test_x_and_the_weight_are_saved_and_nothing_else():
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4)
    y = linear(x, weight, bias)
    saved = y.grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), weight.data_ptr()]


ONES = torch.ones
BAD = [
    (
        ONES(2, 3),
        ONES(4, 2),
        None,
        "input must have shape (*, n_in) with n_in = 2 for a weight of shape (4, 2), got (2, 3)",
    ),
    (
        torch.tensor(1.0),
        ONES(4, 2),
        None,
        "input must have shape (*, n_in) with n_in = 2 for a weight of shape (4, 2), got ()",
    ),
    (ONES(2, 3), ONES(4, 3, 1), None, "weight must have shape (n_out, n_in), got (4, 3, 1); use a convolution"),
    (ONES(2, 3), ONES(4, 3), ONES(3), "bias must have shape (4,) for a weight of shape (4, 3), got (3,); one number"),
    (ONES(2, 3), ONES(4, 3), ONES(4, 1), "bias must have shape (4,) for a weight of shape (4, 3), got (4, 1)"),
]


@pytest.mark.parametrize(("x", "weight", "bias", "message"), BAD)
def test_shapes_that_do_not_fit(x, weight, bias, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        linear(x, weight, bias)


def test_dtypes_that_do_not_fit():
    message = "weight must have the dtype of input, got float32 against float64; convert one of them"
    with pytest.raises(TypeError, match=message):
        linear(ONES(2, 3).double(), ONES(4, 3))
    with pytest.raises(TypeError, match="bias must have the dtype of input, got float64 against float32"):
        linear(ONES(2, 3), ONES(4, 3), ONES(4).double())
    with pytest.raises(TypeError, match="bias must be a floating-point tensor, got dtype int64"):
        linear(ONES(2, 3), ONES(4, 3), ONES(4).long())
    with torch.autocast("cpu", torch.bfloat16):  # which casts them all
        assert linear(ONES(2, 3), ONES(4, 3).half()).dtype == torch.bfloat16
