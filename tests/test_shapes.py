"""`shapes.expect`: no rank-1 arrays where a column or row is meant (SPEC E5)."""

import pytest
import torch

from torchnotes.shapes import expect


@pytest.mark.parametrize(
    ("shape", "axes", "found"),
    [
        ((209, 20), "m n_in", {"m": 209, "n_in": 20}),
        ((3, 4, 5), "*batch n_out", {"n_out": 5}),
        ((5,), "*batch n_out", {"n_out": 5}),
        ((4, 4), "n n", {"n": 4}),
        ((0, 2), "m 2", {"m": 0}),
        ((), "", {}),
    ],
)
def test_returns_the_sizes_it_found(shape, axes, found):
    assert expect(torch.zeros(shape), axes) == found


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "message"),
    [
        (
            (209,),
            "m 1",
            {"m": 209},
            r"y must have shape \(m=209, 1\), got \(209,\); .*make it a column with y\.unsqueeze",
        ),
        (
            (20,),
            "m n_in",
            {},
            r"y must have shape \(m, n_in\), got \(20,\); make it a batch of one with y\.unsqueeze\(0\)",
        ),
        ((3, 5), "m n", {"n": 4}, r"y must have shape \(m, n=4\), got \(3, 5\); check the order"),
        ((3, 4), "n n", {}, r"y must have shape \(n, n\), got \(3, 4\)"),
        ((3, 2), "m 1", {}, r"y must have shape \(m, 1\), got \(3, 2\)"),
        ((3, 2, 1), "m 1", {}, r"y must have shape \(m, 1\), got \(3, 2, 1\)"),
        ((), "n", {}, r"y must have shape \(n,\), got \(\)"),
        ((), "*batch n", {}, r"y must have shape \(\*batch, n\), got \(\)"),
    ],
)
def test_names_the_axis_that_is_wrong(shape, axes, sizes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        expect(torch.zeros(shape), axes, name="y", **sizes)


def test_refuses_what_it_cannot_read():
    with pytest.raises(
        TypeError, match=r"^x must be a torch.Tensor, got list \[1, 2\]; convert it with torch.as_tensor"
    ):
        expect([1, 2], "n", name="x")
    with pytest.raises(ValueError, match="only the first axis may be starred, got axes 'm \\*rest'; write it as"):
        expect(torch.zeros(3, 4), "m *rest")
