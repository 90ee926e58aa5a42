"""A part of PyTorch's own op database through the checker: no right op is called wrong.

The whole of it takes long and is run by experiments/benchmarks/gradcheck_op_db.py; docs/gradcheck.md has its result.
"""

import warnings

import pytest

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
    assert {o.verdict for o in outcomes} <= {"correct", "too large"}, outcomes
