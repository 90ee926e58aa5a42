import math

import torch

from torchnotes.ops import sigmoid


def slope(x: float) -> float:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    sigmoid(point).backward()
    return point.grad.item()


def test_the_notes_numbers():
    # "g'(0) = 1/4; g'(±10) ≈ 0"; the last is e⁻¹⁰ / (1 + e⁻¹⁰)².
    assert slope(0.0) == 0.25
    for x in (10.0, -10.0):
        assert math.isclose(slope(x), math.exp(-10) / (1 + math.exp(-10)) ** 2, rel_tol=1e-9)
        assert slope(x) < 5e-5


def test_finite_at_the_ends():
    x = torch.tensor([-1e4, -torch.inf, 1e4, torch.inf], requires_grad=True)
    y = sigmoid(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_saturation_in_float32_begins_where_the_docstring_says():
    y = sigmoid(torch.tensor([16.6, 16.7]))
    assert (y < 1).tolist() == [True, False]
