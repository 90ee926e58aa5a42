"""Every derivative derived a second time, by sympy, from the formula of the notes, and compared with the ops'.

Sympy sees only the forward formula. Its derivative is evaluated at random points in 30 digits and rounded to float64,
and compared with what backward returns there, to round-off: 1e-12 of the value.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy as sp
import torch
from torch import Tensor
from torch.testing import assert_close

from torchnotes import ops

POINTS = (-2.3, -0.7, 0.4, 1.9)
INSIDE = (0.05, 0.3, 0.72, 0.98)
x, y, p, t = sp.symbols("x y p t", real=True)
sigmoid = 1 / (1 + sp.exp(-x))


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


SCALAR: list[tuple[str, Callable[[Tensor], Tensor], sp.Expr, tuple[float, ...]]] = [
    ("sigmoid", ops.sigmoid, sigmoid, POINTS),
    ("tanh", ops.tanh, (sp.exp(x) - sp.exp(-x)) / (sp.exp(x) + sp.exp(-x)), POINTS),
    ("relu", ops.relu, sp.Piecewise((x, x > 0), (0, True)), POINTS),
    ("leaky_relu", lambda v: ops.leaky_relu(v, 0.2), sp.Piecewise((x, x > 0), (x / 5, True)), POINTS),
    (
        "binary_cross_entropy",
        lambda v: ops.binary_cross_entropy(v, torch.full_like(v, 0.3), reduction="none"),
        -(sp.Rational(3, 10) * sp.log(x) + sp.Rational(7, 10) * sp.log(1 - x)),
        INSIDE,
    ),
    (
        "binary_cross_entropy, target",
        lambda v: ops.binary_cross_entropy(torch.full_like(v, 0.3), v, reduction="none"),
        -(x * sp.log(sp.Rational(3, 10)) + (1 - x) * sp.log(sp.Rational(7, 10))),
        INSIDE,
    ),
    (
        "binary_cross_entropy_with_logits",
        lambda v: ops.binary_cross_entropy_with_logits(v, torch.full_like(v, 0.3), reduction="none"),
        -(sp.Rational(3, 10) * sp.log(sigmoid) + sp.Rational(7, 10) * sp.log(1 - sigmoid)),
        POINTS,
    ),
    (
        "binary_cross_entropy_with_logits, positive weight",
        lambda v: ops.binary_cross_entropy_with_logits(
            v, torch.full_like(v, 0.3), pos_weight=tensor(2.5), reduction="none"
        ),
        -(sp.Rational(5, 2) * sp.Rational(3, 10) * sp.log(sigmoid) + sp.Rational(7, 10) * sp.log(1 - sigmoid)),
        POINTS,
    ),
    (
        "binary_cross_entropy_with_logits, target",
        lambda v: ops.binary_cross_entropy_with_logits(
            torch.full_like(v, 0.8), v, pos_weight=tensor(2.5), reduction="none"
        ),
        -(
            sp.Rational(5, 2) * x * sp.log(sigmoid.subs(x, sp.Rational(4, 5)))
            + (1 - x) * sp.log(1 - sigmoid.subs(x, sp.Rational(4, 5)))
        ),
        INSIDE,
    ),
    ("l2_penalty", lambda v: torch.stack([ops.l2_penalty(w, 0.6, 3) for w in v]), x**2 / 10, POINTS),
    ("l1_penalty", lambda v: torch.stack([ops.l1_penalty(w, 0.6, 3) for w in v]), sp.Abs(x) / 10, POINTS),
]


def evaluated(expression: sp.Expr, point: dict[sp.Symbol, float]) -> float:
    return float(expression.subs({name: sp.Float(value, 30) for name, value in point.items()}).evalf(30))


@pytest.mark.parametrize(("op", "formula", "points"), [c[1:] for c in SCALAR], ids=[c[0] for c in SCALAR])
def test_scalar_value_slope_and_curvature(op: Callable[[Tensor], Tensor], formula: sp.Expr, points: tuple[float, ...]):
    v = tensor(*points).requires_grad_()
    value = op(v)
    assert_close(value.detach(), tensor(*(evaluated(formula, {x: n}) for n in points)), rtol=1e-12, atol=1e-14)
    (slope,) = torch.autograd.grad(value.sum(), v, create_graph=True)
    first = sp.diff(formula, x)
    assert_close(slope.detach(), tensor(*(evaluated(first, {x: n}) for n in points)), rtol=1e-12, atol=1e-14)
    curvature = torch.autograd.grad(slope.sum(), v)[0] if slope.requires_grad else torch.zeros_like(v)
    second = sp.diff(first, x).replace(sp.DiracDelta, lambda *_: sp.Integer(0))  # |x| has one at 0, where no point is
    assert_close(curvature, tensor(*(evaluated(second, {x: n}) for n in points)), rtol=1e-11, atol=1e-13)
    _, tangent = torch.func.jvp(op, (v.detach(),), (torch.ones_like(v),))
    assert_close(tangent, slope.detach(), rtol=1e-13, atol=1e-15)


Z = sp.symbols("z0:3", real=True)
Q = sp.symbols("q0:3", real=True)
TOTAL = sum(sp.exp(z) for z in Z)
SOFTMAX = [sp.exp(z) / TOTAL for z in Z]
AT = {**dict(zip(Z, (0.7, -1.2, 0.3), strict=True)), **dict(zip(Q, (0.5, 0.3, 0.2), strict=True))}
W = (0.5, 2.0, 1.5)
EPSILON = sp.Rational(1, 5)

VECTOR: list[tuple[str, Callable[..., Tensor], list[sp.Expr], tuple[sp.Symbol, ...]]] = [
    ("softmax", lambda z: ops.softmax(z, dim=0), SOFTMAX, Z),
    ("log_softmax", lambda z: ops.log_softmax(z, dim=0), [sp.log(s) for s in SOFTMAX], Z),
    ("cross_entropy", lambda z: ops.cross_entropy(z, torch.tensor(1)).reshape(1), [-sp.log(SOFTMAX[1])], Z),
    (
        "cross_entropy, weights and smoothing",
        lambda z: ops.cross_entropy(z, torch.tensor(1), tensor(*W), reduction="sum", label_smoothing=0.2).reshape(1),
        [
            -(1 - EPSILON) * W[1] * sp.log(SOFTMAX[1])
            - EPSILON / 3 * sum(w * sp.log(s) for w, s in zip(W, SOFTMAX, strict=True))
        ],
        Z,
    ),
    (
        "cross_entropy, probabilities",
        lambda z, q: ops.cross_entropy(z, q).reshape(1),
        [-sum(q * sp.log(s) for q, s in zip(Q, SOFTMAX, strict=True))],
        (*Z, *Q),
    ),
    (
        "batch_norm",
        lambda z: ops.batch_norm(z.view(3, 1), None, None, tensor(1.5), tensor(0.5), True, eps=0.1).view(3),
        [
            sp.Rational(3, 2)
            * (z - sum(Z) / 3)
            / sp.sqrt(sum((v - sum(Z) / 3) ** 2 for v in Z) / 3 + sp.Rational(1, 10))
            + sp.Rational(1, 2)
            for z in Z
        ],
        Z,
    ),
    (
        "batch_norm, evaluation",
        lambda z: ops.batch_norm(z.view(3, 1), tensor(0.2), tensor(0.9), tensor(1.5), tensor(0.5), eps=0.1).view(3),
        [sp.Rational(3, 2) * (z - sp.Rational(1, 5)) + sp.Rational(1, 2) for z in Z],
        Z,
    ),
]


@pytest.mark.parametrize(("op", "formulas", "symbols"), [c[1:] for c in VECTOR], ids=[c[0] for c in VECTOR])
def test_vector_values_jacobians_and_hessians(
    op: Callable[..., Tensor], formulas: list[sp.Expr], symbols: tuple[sp.Symbol, ...]
):
    inputs = tuple(tensor(*(AT[s] for s in symbols[i : i + 3])) for i in range(0, len(symbols), 3))
    every = tuple(range(len(inputs)))
    assert_close(op(*inputs), tensor(*(evaluated(f, AT) for f in formulas)), rtol=1e-12, atol=1e-14)
    jacobian = torch.cat(torch.func.jacrev(op, every)(*inputs), dim=-1)
    expected = [[evaluated(sp.diff(f, s), AT) for s in symbols] for f in formulas]
    assert_close(jacobian, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)
    forward = torch.cat(torch.func.jacfwd(op, every)(*inputs), dim=-1)
    assert_close(forward, jacobian, rtol=1e-11, atol=1e-13)
    for row, formula in enumerate(formulas):
        blocks = torch.func.hessian(lambda *a, row=row: op(*a)[row], every)(*inputs)
        hessian = torch.cat([torch.cat(list(line), dim=1) for line in blocks])
        exact = [[evaluated(sp.diff(formula, a, b), AT) for b in symbols] for a in symbols]
        assert_close(hessian, torch.tensor(exact, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_linear_and_dense():
    a, w, b = sp.symbols("a w b", real=True)
    at = {a: 0.7, w: -1.3, b: 1.2}
    inputs = tuple(
        torch.tensor(v, dtype=torch.float64).view(s) for v, s in ((0.7, (1, 1)), (-1.3, (1, 1)), (1.2, (1,)))
    )
    for op, formula in (
        (ops.linear, w * a + b),
        (lambda *i: ops.dense(*i, activation="sigmoid"), 1 / (1 + sp.exp(-(w * a + b)))),
        (lambda *i: ops.dense(*i, activation="tanh"), sp.tanh(w * a + b)),
        (lambda *i: ops.dense(*i, activation="relu"), w * a + b),  # positive here
    ):
        got = torch.func.grad(lambda *i, op=op: op(*i).sum(), (0, 1, 2))(*inputs)
        for gradient, symbol in zip(got, (a, w, b), strict=True):
            assert_close(gradient.item(), evaluated(sp.diff(formula, symbol), at), rtol=1e-12, atol=1e-14)


def test_a_wrong_formula_is_caught():
    v = tensor(0.4).requires_grad_()
    (slope,) = torch.autograd.grad(ops.sigmoid(v).sum(), v)
    with pytest.raises(AssertionError):
        assert_close(slope, tensor(evaluated(sp.diff(1 / (1 + sp.exp(x)), x), {x: 0.4})), rtol=1e-12, atol=1e-14)
