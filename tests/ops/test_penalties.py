"""The L1 and L2 penalties and `Penalty`: the notes' formulas, their gradients, and which parameters they pick."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchnotes.nn as tn
from torchnotes import ops
from torchnotes.regularization import Penalty

V = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
W = torch.tensor([[-4.0]], dtype=torch.float64)


def test_values_and_gradients_of_the_notes():
    lambd, m = 0.6, 3
    v, w = V.clone().requires_grad_(), W.clone().requires_grad_()
    l2 = ops.l2_penalty([v, w], lambd, m)
    assert_close(l2.item(), 0.6 / 6 * (1 + 4 + 9 + 16))
    assert_close(torch.autograd.grad(l2, (v, w)), (lambd / m * V, lambd / m * W))
    l1 = ops.l1_penalty([v, w], lambd, m)
    assert_close(l1.item(), 0.6 / 6 * (1 + 2 + 3 + 4))
    assert_close(torch.autograd.grad(l1, (v, w)), (lambd / (2 * m) * V.sign(), lambd / (2 * m) * W.sign()))


def test_l2_is_pytorchs_weight_decay():
    ours, theirs = V.clone().requires_grad_(), V.clone().requires_grad_()
    lambd, m = 0.6, 3
    ops.l2_penalty(ours, lambd, m).backward()
    torch.optim.SGD([ours], lr=0.1).step()
    theirs.grad = torch.zeros_like(V)
    torch.optim.SGD([theirs], lr=0.1, weight_decay=lambd / m).step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["l1_penalty", "l2_penalty"])
def test_layouts_extremes_and_half_precision(name: str):
    penalty = getattr(ops, name)
    for w in (V.T, V[:, ::2], V[0].expand(3, 2), V[:0], V[0, 0]):
        assert_close(penalty(w, 2.0, 1), penalty(w.contiguous(), 2.0, 1))
    assert penalty(torch.tensor([torch.nan, 1.0]), 1.0, 1).isnan()
    w = torch.full((100_000,), 1.0, dtype=torch.float16, requires_grad=True)
    total = penalty(w, 2.0, 1)  # above float16's largest number
    assert total.dtype == torch.float32
    assert total == 100_000
    total.backward()
    assert w.grad.dtype == torch.float16


@pytest.mark.parametrize("name", ["l1_penalty", "l2_penalty"])
def test_what_is_refused(name: str):
    penalty = getattr(ops, name)
    with pytest.raises(ValueError, match=r"lambd must lie in \[0, inf\), got -1\.0; 0 turns the penalty off"):
        penalty(V, -1.0, 3)
    with pytest.raises(ValueError, match=r"m must be at least 1, got 0"):
        penalty(V, 1.0, 0)
    with pytest.raises(TypeError, match=r"m must be a whole number of samples, got float 2\.5"):
        penalty(V, 1.0, 2.5)
    with pytest.raises(ValueError, match=r"weights must hold at least one tensor, got none"):
        penalty([], 1.0, 3)
    with pytest.raises(TypeError, match=r"weights\[1\] must be a floating-point tensor"):
        penalty([V, V.long()], 1.0, 3)
    with pytest.raises(TypeError, match=r"weights must be a tensor or several, got float 1\.0"):
        penalty(1.0, 1.0, 3)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = tn.BatchNorm1d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.conv = nn.Conv2d(1, 1, 3)
        self.layer_norm = nn.LayerNorm(2)
        self.attention = nn.MultiheadAttention(2, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))


def test_it_picks_every_weight_once_and_nothing_else():
    found = Penalty.weights(Shared())
    assert sorted(found) == ["attention.in_proj_weight", "attention.out_proj.weight", "conv.weight", "first.weight"]


def test_the_penalty_of_a_model():
    model = tn.MLP([3, 4, 1])
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    for kind, function in (("l1", ops.l1_penalty), ("l2", ops.l2_penalty)):
        penalty = Penalty(kind, lambd=0.7, m=5)
        assert_close(penalty(model), function(weights, 0.7, 5))
        assert_close(penalty(model, m=9), function(weights, 0.7, 9))
    model.zero_grad()
    Penalty(lambd=0.7)(model, m=5).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.grad is None
        else:
            assert_close(parameter.grad, 0.7 / 5 * parameter.detach())
    assert Penalty(lambd=0.7)(nn.ReLU(), m=5) == 0
    assert repr(copy.deepcopy(Penalty("l1", lambd=0.1, m=3))) == "Penalty('l1', lambd=0.1, m=3)"


def test_what_penalty_refuses():
    with pytest.raises(ValueError, match=r"kind must be 'l1' or 'l2', got str 'l3'"):
        Penalty("l3", lambd=1.0)
    with pytest.raises(ValueError, match=r"lambd must lie in"):
        Penalty(lambd=-1.0)
    with pytest.raises(ValueError, match=r"m must be at least 1"):
        Penalty(lambd=1.0, m=0)
    with pytest.raises(ValueError, match=r"m must be given, got None; pass penalty\(model, m=len\(x\)\)"):
        Penalty(lambd=1.0)(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got "):
        Penalty(lambd=1.0)([V], m=3)
