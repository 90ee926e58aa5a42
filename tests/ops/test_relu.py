import pytest
import torch

from torchnotes.ops import relu


def test_slopes_and_the_kink():
    # Slope 0 below, 1 above; at exactly 0 the library takes 0, as PyTorch does.
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, torch.inf, -torch.inf], requires_grad=True)
    y = relu(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 0.0, 3.0, torch.inf, 0.0]
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_only_the_output_is_saved():
    x = torch.randn(5, requires_grad=True)
    y = relu(x)
    assert [saved.data_ptr() for saved in y.grad_fn.saved_tensors] == [y.data_ptr()]


def test_inplace_is_refused():
    with pytest.raises(
        ValueError, match=r"relu must be called with inplace=False, got inplace=True; an op here leaves"
    ):
        relu(torch.ones(1), inplace=True)
