import pytest
import torch

from torchnotes.ops import leaky_relu


def test_the_notes_slope_and_the_kink():
    # max(0.01 z, z): slope 0.01 below, 1 above, and 0.01 at exactly 0, as in PyTorch.
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = leaky_relu(x)
    y.sum().backward()
    assert y.tolist() == [-0.02, 0.0, 3.0]
    assert x.grad.tolist() == [0.01, 0.01, 1.0]


@pytest.mark.parametrize("slope", [0.0, 1.0, 1.5, -0.5])
def test_the_slope_at_the_kink_is_the_one_below(slope: float):
    x = torch.tensor([-2.0, 0.0, -0.0, 3.0], dtype=torch.float64, requires_grad=True)
    leaky_relu(x, slope).sum().backward()
    assert x.grad.tolist() == [slope, slope, slope, 1.0]


@pytest.mark.parametrize("slope", [0.01, 0.0, 2.0])
def test_the_output_is_saved_where_it_tells_the_sign(slope: float):
    x = torch.randn(5, requires_grad=True)
    y = leaky_relu(x, slope)
    assert [saved.data_ptr() for saved in y.grad_fn.saved_tensors] == [y.data_ptr()]


def test_the_input_is_saved_for_a_negative_slope():
    x = torch.randn(5, requires_grad=True)
    y = leaky_relu(x, -1.0)
    assert [saved.data_ptr() for saved in y.grad_fn.saved_tensors] == [x.data_ptr()]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="leaky_relu must be called with inplace=False"):
        leaky_relu(torch.ones(1), inplace=True)
    with pytest.raises(ValueError, match=r"negative_slope must lie in \[-inf, inf\), got nan; the notes use 0\.01"):
        leaky_relu(torch.ones(1), float("nan"))
    with pytest.raises(TypeError, match=r"negative_slope must be a number in .*, got str '0\.1'"):
        leaky_relu(torch.ones(1), "0.1")
