"""`torch.cond` in a model: its branch is checked as any other code, and afterwards it works as before."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import seeded
from tests.gradcheck.test_shapes_of_models import planted, randn, sign, weighted
from torchnotes.gradcheck import check_function, check_gradients
from torchnotes.gradcheck._kinks import branches
from torchnotes.gradcheck._precision import rounding

METHODS = ("exact", "projected")
# PyTorch's own, while it compiles a branch whose operand is no leaf
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class OnValues(nn.Module):
    """A branch chosen by the values, on what was computed before it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2).double()

    def forward(self, x):
        h = self.a(x)
        return torch.cond(x.sum() > 0, lambda h: h.tanh(), lambda h: (2 * h).sin(), (h,))


class OnLayers(nn.Module):
    """Each branch calls a layer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.a(x).tanh(), lambda x: self.b(x).sin(), (x,))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_either_branch_is_checked_and_a_fault_is_named(shift, method):
    model, x = seeded(OnValues()), randn(4, 3) + shift
    report = check_gradients(model, x, loss=weighted, method=method)
    assert report.verdict == "correct", str(report)
    wrong, where = planted(model, "a.weight", sign)
    report = check_gradients(wrong, x, loss=weighted, method=method, modules=True)
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [where]
    assert report.culprits == (where.replace(".original", ".0"),)
    x.requires_grad_()
    model(x).sum().backward()  # a mode that the compiler passed over would have broken every later call
    assert x.grad.abs().sum() > 0


def test_layers_that_are_called_in_a_branch_are_checked_from_outside():
    model, x = seeded(OnLayers()), randn(4, 3) + 2.0
    report = check_gradients(model, x, loss=weighted)
    assert report.verdict == "correct", str(report)
    assert [f.name for f in report.modules] == ["the model's own forward"]
    wrong, where = planted(model, "a.weight", sign)
    report = check_gradients(wrong, x, loss=weighted)
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [where]
    assert report.culprits == ("the model's own forward",)


def test_the_recorders_see_the_branch_that_is_taken():
    x = randn(4)

    def run(then):
        return lambda: torch.cond(x.abs().sum() > 0, then, lambda x: x.clone(), (x,))

    for then in (F.relu, lambda x: x.float().double()):
        run(then)()  # compiled, as in the evaluation that comes before any recording
    sides = branches(run(F.relu))
    assert any(torch.equal(d, torch.sign(x).to(torch.int8)) for d in sides if d.shape == x.shape)
    assert rounding(run(lambda x: x.float().double())) == (torch.finfo(torch.float32).eps, "float32")


def test_its_forward_mode_and_second_order_are_found_to_be_zero():
    def fn(x):
        return torch.cond(x.sum() > 0, lambda x: x.tanh(), lambda x: x.sin(), (x,))

    x = randn(4)
    assert check_function(fn, x, forward_mode=False, second_order=False).verdict == "correct"
    wrong = check_function(fn, x)  # PyTorch gives 0 for both, without an error
    assert wrong.verdict == "wrong"
    assert {f.name for f in wrong.findings if f.verdict == "wrong"} == {"forward mode", "second order"}
