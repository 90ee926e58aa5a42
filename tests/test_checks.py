"""The wording of the shared argument checks: what must hold, what came, what to do."""

import math

import pytest
import torch

from torchnotes._checks import (
    check_floating,
    check_generator,
    check_in_range,
    check_same_shape,
    check_tensor,
    describe,
)


def test_describe_is_short():
    assert describe(torch.zeros(2, 3)) == "a tensor of shape (2, 3) and dtype float32"
    assert describe(0.5) == "float 0.5"
    assert len(describe("x" * 500)) < 80


def test_tensor_and_dtype():
    check_tensor(torch.zeros(1), "input")
    check_floating(torch.zeros(1, dtype=torch.bfloat16), "input")
    with pytest.raises(TypeError, match=r"input must be a torch.Tensor, got int 3; convert it with torch.as_tensor"):
        check_tensor(3, "input")
    with pytest.raises(
        TypeError, match=r"input must be a floating-point tensor, got dtype int64; convert it with input"
    ):
        check_floating(torch.zeros(1, dtype=torch.int64), "input")
    with pytest.raises(TypeError, match="got dtype complex64"):
        check_floating(torch.zeros(1, dtype=torch.complex64), "input")


@pytest.mark.parametrize("value", [0.5, 1, 1e-300])
def test_range_takes_what_lies_inside(value):
    check_in_range(value, "keep_prob", 0, 1, low_open=True, remedy="use 1.0 to keep every unit")


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_range_refuses_the_rest(value):
    with pytest.raises(ValueError, match=r"keep_prob must lie in \(0, 1\], got .*; use 1.0 to keep every unit\.$"):
        check_in_range(value, "keep_prob", 0, 1, low_open=True, remedy="use 1.0 to keep every unit")


@pytest.mark.parametrize("value", ["0.5", None, True])
def test_range_refuses_what_is_no_number(value):
    with pytest.raises(
        TypeError, match=r"rate must be a number in \[0, inf\), got (str|NoneType|bool) .*; give a rate"
    ):
        check_in_range(value, "rate", 0, math.inf, remedy="give a rate")


def test_range_without_an_upper_end():
    check_in_range(1e300, "rate", 0, math.inf, remedy="-")
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\), got 1"):
        check_in_range(1, "rate", 0, 1, high_open=True, remedy="-")


def test_generator():
    check_generator(None, torch.device("cpu"))
    check_generator(torch.Generator(), torch.device("cpu"))
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got int 0; make one with"):
        check_generator(0, torch.device("cpu"))
    with pytest.raises(ValueError, match="generator must live on the tensor's device cuda, got one on cpu; make one"):
        check_generator(torch.Generator(), torch.device("cuda"))


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (
            (209, 1),
            (209,),
            r"got target \(209,\) against input \(209, 1\), .*broadcast to \(209, 209\); .*unsqueeze\(-1\)",
        ),
        ((209,), (209, 1), r"silently broadcast to \(209, 209\); drop the extra axis with target\.squeeze\(-1\)"),
        ((4, 2), (2, 4), r"got target \(2, 4\) against input \(4, 2\); use target\.reshape\(input\.shape\)"),
        ((4, 2), (3, 2), r"got target \(3, 2\) against input \(4, 2\); check how target was batched"),
        ((4, 2), (2,), r"silently broadcast to \(4, 2\); check how target was batched"),
    ],
)
def test_a_target_of_another_shape_is_refused(output, target, message):
    with pytest.raises(ValueError, match=f"^target must have the shape of input, .*{message}"):
        check_same_shape(torch.zeros(output), torch.zeros(target))


def test_a_target_of_the_same_shape_is_taken():
    check_same_shape(torch.zeros(4, 2), torch.zeros(4, 2))
