import math

import torch

from torchnotes.ops import tanh


def slope(x: float) -> float:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    tanh(point).backward()
    return point.grad.item()


def test_the_notes_numbers():
    # "g'(0) = 1; g'(±10) ≈ 0"; the last is 1/cosh²(10) = 8.2e-9, of which 1 − y² loses half the digits.
    assert slope(0.0) == 1.0
    for x in (10.0, -10.0):
        assert math.isclose(slope(x), 1 / math.cosh(10) ** 2, rel_tol=1e-7)
        assert slope(x) < 1e-8


def test_finite_at_the_ends():
    x = torch.tensor([-1e4, -torch.inf, 1e4, torch.inf], requires_grad=True)
    y = tanh(x)
    y.sum().backward()
    assert y.tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_saturation_in_float32_begins_where_the_docstring_says():
    y = tanh(torch.tensor([8.9, 9.1]))
    assert (y < 1).tolist() == [True, False]
