"""A check with nothing to look at is no green test: refused in words, or "inconclusive" with the reason."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import data, net
from torchnotes.cli import main
from torchnotes.gradcheck import GradientMismatch, assert_gradients, check_function, check_gradients, gradient_ratio

METHODS = ("exact", "projected")


class Tripled(torch.autograd.Function):
    """x, whose backward is three times too large: a check that passes it has looked at nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3).double()

    def forward(self, x):
        return Tripled.apply(self.inner(x))


def total(out, target):
    return F.cross_entropy(out, target, reduction="sum")


def decay(model):
    return sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("penalty", [None, decay])
@pytest.mark.parametrize("method", METHODS)
def test_a_cost_over_no_samples_is_refused(method, penalty):
    x, y = data()
    assert not check_gradients(Wrong(), x, y, loss=total, penalty=penalty, method=method).ok
    said = (
        r"inputs and target must hold at least one sample, got a tensor of shape \(0, 6\) and dtype float64 and a cost "
        r"that no parameter changes; .* give it a batch with samples in it"
    )
    with pytest.raises(ValueError, match=said):
        check_gradients(Wrong(), x[:0], y[:0], loss=total, penalty=penalty, method=method)


def test_a_mean_over_no_samples_is_refused_for_what_it_is():
    x, y = data()
    with pytest.raises(ValueError, match=r"at least one sample, got a tensor of shape \(0, 6\).* and J = \[nan\]"):
        check_gradients(net(), x[:0], y[:0], loss=F.cross_entropy)


@pytest.mark.parametrize("penalty", [None, decay])
@pytest.mark.parametrize("method", METHODS)
def test_labels_that_are_all_ignored_prove_nothing(method, penalty):
    x, y = data()
    report = check_gradients(
        net(), x, torch.full_like(y, -100), loss=total, penalty=penalty, method=method, modules=False
    )
    assert report.verdict == "inconclusive"
    what = "J" if penalty is None else "the data cost"
    assert f"nothing was checked: {what} stays the same to the last bit when all of θ is moved" in report.reason
    with pytest.raises(GradientMismatch, match=r"(?s)INCONCLUSIVE.*are all labels ignored"):
        assert_gradients(net(), x, torch.full_like(y, -100), loss=total, penalty=penalty, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_starts_at_zero_is_no_nothing(method):
    model, (x, y) = net(), data()
    with torch.no_grad():
        model[4].weight.zero_()  # so the gradient of all layers below is exactly 0
    assert check_gradients(model, x, y, loss=F.cross_entropy, method=method).verdict == "correct"
    below = check_gradients(model, x, y, loss=F.cross_entropy, method=method, parameters=["0", "2"])
    assert below.verdict == "inconclusive"
    assert "J stays the same to the last bit" in below.reason


@pytest.mark.parametrize("method", METHODS)
def test_no_parameters_are_refused(method):
    x, y = data()
    with pytest.raises(
        ValueError, match="parameters must hold at least one finite entry to be checked, got none; a ch"
    ):
        check_gradients(net(), x, y, loss=F.cross_entropy, method=method, parameters=[])


class Rows(nn.Module):
    """A table of ``rows`` rows, and a layer beside it unless that is left out."""

    def __init__(self, rows, beside=True):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, 6, dtype=torch.float64))
        self.layer = nn.Linear(6, 3).double() if beside else None

    def forward(self, x):
        rows = F.linear(x, self.table).square().sum()
        return rows if self.layer is None else rows + self.layer(x).square().sum()


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_without_rows_is_refused_alone_and_noted_beside_others(method):
    x, _ = data()
    with pytest.raises(ValueError, match=r"got table: a tensor of shape \(0, 6\) and dtype float64; a check of nothin"):
        check_gradients(Rows(0, beside=False), x, method=method)
    report = check_gradients(Rows(0), x, method=method)
    assert report.verdict == "correct"
    assert "table has no finite entry: nothing of it was checked" in report.notes
    (row,) = [r for r in report.rows() if r[0] == "table"]
    assert row[1] == "0×6"
    assert row[-1] == "-"
    assert "table has no finite entry" in str(report)


@pytest.mark.parametrize(
    ("fn", "inputs", "said"),
    [
        (
            Tripled.apply,
            (torch.empty(0, 3),),
            r"inputs must hold at least one finite entry to be checked, got input\[0\]",
        ),
        (torch.tanh, (torch.full((3,), math.inf),), "inputs must hold at least one finite entry to be checked"),
        (torch.matmul, (torch.empty(2, 0), torch.empty(0, 3)), r"input\[0\]: a tensor of shape \(2, 0\).*input\[1\]"),
        (
            lambda x: Tripled.apply(x)[:0],
            (torch.ones(4, 3),),
            "fn must return at least one number, got tensors without",
        ),
        (F.linear, (torch.empty(0, 3), torch.ones(2, 3)), "fn must return at least one number, got tensors without"),
        (
            lambda x, w: Tripled.apply(F.linear(x, w)).sum(),
            (torch.empty(0, 3), torch.ones(2, 3)),
            r"inputs must hold at least one sample, got a tensor of shape \(0, 3\).* outputs that nothing changes",
        ),
        (
            lambda x, i: Tripled.apply(x)[i].sum(),
            (torch.ones(3), torch.empty(0, dtype=torch.long)),
            r"inputs must hold at least one sample, got a tensor of shape \(0,\) and dtype int64 and outputs that noth",
        ),
    ],
)
def test_a_function_of_nothing_is_refused(fn, inputs, said):
    with pytest.raises(ValueError, match=said):
        check_function(fn, *inputs)


def test_what_is_empty_beside_something_is_noted_and_the_rest_checked():
    report = check_function(F.linear, torch.empty(5, 0), torch.empty(2, 0), torch.ones(2))
    assert report.verdict == "correct"
    assert [n for n in report.notes if n.startswith("input[1] has no finite entry: nothing of it was checked")]
    assert report.by_parameter["input[0]"].reason == "no finite entry: nothing of it was checked"
    wrong = check_function(
        lambda x, b: F.linear(x, x.new_empty(2, 0), Tripled.apply(b)), torch.empty(5, 0), torch.ones(2)
    )
    assert wrong.verdict == "wrong"


def test_a_function_whose_derivative_is_zero_is_checked_as_any_other():
    assert check_function(torch.floor, torch.tensor([0.5, 1.25])).verdict == "correct"


class Routed(nn.Module):
    """Two experts, the first of which is sent no sample at all."""

    def __init__(self):
        super().__init__()
        self.idle, self.busy = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        return torch.cat([self.idle(x[:0]), self.busy(x)])


def test_a_module_that_saw_no_sample_is_not_said_to_agree():
    x, y = data()
    report = check_gradients(Routed(), x, y, loss=F.cross_entropy)
    assert report.verdict == "correct"
    said = {f.name: f.detail for f in report.modules}
    assert said["idle"] == "its output has no entries: not judged"
    assert said["busy"] == "its own backward agrees"


def test_the_ratio_of_two_empty_gradients_is_refused():
    for nothing in ([], {}, torch.empty(0, 3), [torch.empty(0), torch.empty(2, 0)]):
        with pytest.raises(
            ValueError, match="approx and exact must hold at least one entry, got none; two gradients of"
        ):
            gradient_ratio(nothing, nothing)


FACTORIES = """
import torch
from torch import nn
def empty(): return nn.Linear(3, 2), torch.empty(0, 3), torch.sum
def ignored():
    loss = nn.CrossEntropyLoss(reduction="sum")
    return nn.Linear(3, 2), torch.ones(4, 3), torch.full((4,), -100), loss
"""


@pytest.mark.parametrize(
    ("factory", "said"), [("empty", "no check was made: inputs and target"), ("ignored", "nothing w")]
)
def test_the_command_exits_with_no_verdict(tmp_path, monkeypatch, capsys, factory, said):
    (tmp_path / "of_nothing.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_nothing", raising=False)
    assert main(["gradcheck", f"of_nothing:{factory}"]) == 2
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
