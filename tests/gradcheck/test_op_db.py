"""A part of PyTorch's own op database through the checker: no right op is called wrong.

The whole of it takes long and is run by experiments/benchmarks/gradcheck_op_db.py; docs/gradcheck.md has its result.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwd

from torchnotes.gradcheck import check_function

OPS = (
    "add", "addmm", "amax", "atan2", "bmm", "clamp", "cumprod", "cumsum", "div", "einsum", "exp", "fft.fft", "gather",
    "index_select", "kron", "linalg.cholesky", "linalg.det", "linalg.inv", "log", "logsumexp", "masked_fill", "matmul",
    "maximum", "median", "mul", "nn.functional.batch_norm", "nn.functional.conv2d", "nn.functional.cross_entropy",
    "nn.functional.dropout", "nn.functional.gelu", "nn.functional.huber_loss", "nn.functional.layer_norm",
    "nn.functional.max_pool2d", "nn.functional.relu", "norm", "pow", "prod", "sigmoid", "softmax", "sort", "std",
    "tanh", "topk", "var", "where",
)  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_pytorchs_own_op_is_not_called_wrong(name):
    pytest.importorskip("expecttest", reason="PyTorch's op samples need expecttest (the dev extra)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's test samples use deprecated spellings
        from experiments.benchmarks.gradcheck_op_db import cases, check_case, differentiable_ops

        outcomes = [check_case(op, *case) for op in differentiable_ops((name,))[:1] for case in cases(op, 2)]
    assert outcomes, f"{name} is not in this PyTorch's op database"
    assert {o.verdict for o in outcomes} <= {"correct", "nothing to check"}, outcomes


RESULT = Path(__file__).parents[2] / "docs" / "gradcheck_op_db.json"
FORWARD_RULES_INEXACT = {"cholesky_inverse", "logcumsumexp"}  # shown below by closed form


def test_the_kept_sweep_calls_no_right_op_wrong():
    """What docs/gradcheck.md says of the whole database, read from the result of the last sweep."""
    result = json.loads(RESULT.read_text())
    counts = result["counts"]
    assert sum(counts.values()) == result["samples"]
    assert "wrong" not in counts
    checked = result["samples"] - counts.get("nothing to check", 0)
    undecided = sum(counts.get(verdict, 0) for verdict in ("inconclusive", "refused", "crashed"))
    assert undecided <= 0.02 * checked
    listed = {verdict: 0 for verdict in counts}
    for row in result["rest"]:
        assert row["reason"]
        listed[row["verdict"]] += len(row["samples"])
    listed["correct"] = counts["correct"]
    assert listed == counts
    assert {row["op"] for row in result["rest"] if row["verdict"] == "suspect"} <= FORWARD_RULES_INEXACT


def pushed(fn, x, d):
    with fwd.dual_level():
        return fwd.unpack_dual(fn(fwd.make_dual(x, d))).tangent


def test_suspect_where_pytorchs_forward_rule_of_cholesky_inverse_is_inexact():
    """X = (L Lᵀ)⁻¹ has dX = −X (dL Lᵀ + L dLᵀ) X: the verdict on the forward rule is that of the closed form."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    lower = square.tril(-1) + torch.diag(1 + square.diagonal().abs())
    line = torch.randn(4, 4, generator=generator, dtype=torch.float64).tril()
    inverse = (lower @ lower.T).inverse()
    right = -inverse @ (line @ lower.T + lower @ line.T) @ inverse
    exact = torch.allclose(pushed(torch.cholesky_inverse, lower, line), right, rtol=1e-9)
    report = check_function(lambda a: torch.cholesky_inverse(a.tril()), lower, second_order=False)
    (forward,) = (f for f in report.findings if f.name == "forward mode")
    assert (forward.verdict == "correct") == exact
    assert {f.verdict for f in report.findings if f.name != "forward mode"} == {"correct"}


def test_suspect_where_pytorchs_forward_rule_of_logcumsumexp_is_inexact():
    """The first sum has one term, so its derivative along e₁ is exactly 1."""
    x, line = torch.tensor([-14.0, -1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64)
    exact = abs(float(pushed(lambda t: torch.logcumsumexp(t, 0), x, line)[0]) - 1) < 1e-9
    report = check_function(lambda t: torch.logcumsumexp(t, 0), x)
    (forward,) = (f for f in report.findings if f.name == "forward mode")
    assert forward.verdict == ("correct" if exact else "suspect")
