"""Backwards that are wrong: what torch.autograd.gradcheck says of each, and that our check catches every one."""

import pytest
import torch

from tests.gradcheck._wrong import CASES, unary
from torchnotes.gradcheck import check_function

BY_NAME = [pytest.param(case, id=case.name) for case in CASES]


def passes_gradcheck(case, *, fast):
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.autograd.gradcheck(case.fn, inputs, fast_mode=fast, raise_exception=False)


@pytest.mark.parametrize("case", BY_NAME)
def test_what_gradcheck_lets_through(case):
    """The table says truly which faults PyTorch's own check does not see, in its slow and in its fast mode."""
    assert passes_gradcheck(case, fast=False) == case.slow
    assert passes_gradcheck(case, fast=True) == case.fast


@pytest.mark.parametrize("case", BY_NAME)
def test_every_fault_is_caught_and_named(case):
    report = check_function(case.fn, *case.inputs)
    assert report.verdict == "wrong"
    assert case.says in " ".join(report.sentences())


def test_most_of_them_pass_gradcheck_in_one_mode_or_both():
    assert sum(case.slow or case.fast for case in CASES) >= 12


def test_the_right_backward_in_the_same_harness_is_correct():
    """The faults are in the table's backwards, not in the harness around them."""
    report = check_function(unary(lambda g, s: g * s), *CASES[0].inputs, second_order=False)
    assert report.verdict == "correct"
    assert {f.verdict for f in report.findings} == {"correct"}
