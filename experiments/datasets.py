"""Real and drawn data sets without a download, as tensors: a table, and points in the plane in two classes.

* ``breast_cancer``: scikit-learn's table of 569 tumours, 30 measured features each, raw: their ranges differ by 10⁵.
* ``planar_flower``, ``moons``, ``circles``: two-dimensional sets whose classes no straight line separates.
* ``Sets`` holds training, dev and test rows; ``split`` makes one of any inputs and labels, 60/20/20 by class.

Binary labels are a column (m, 1) of 0.0 and 1.0, which is what ``binary_cross_entropy_with_logits`` takes and what
keeps a row from being broadcast against a column (SPEC E5). Everything is drawn on the CPU from the seed, so that every
device sees the same numbers. The digits have a file of their own, ``experiments/digits.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.data import InputNormalizer, train_dev_test_split


@dataclass(frozen=True)
class Sets:
    """Training, dev and test set, rows = samples.

    Attributes:
        x_train: (m, n) inputs.
        y_train: (m, 1) of 0.0 and 1.0, or (m,) class numbers.
        x_dev: likewise.
        y_dev: likewise.
        x_test: likewise.
        y_test: likewise.
    """

    x_train: Tensor
    y_train: Tensor
    x_dev: Tensor
    y_dev: Tensor
    x_test: Tensor
    y_test: Tensor

    def normalized(self) -> Sets:
        """All three inputs by the training set's μ and σ."""
        normalizer = InputNormalizer().fit(self.x_train)
        x_train, x_dev, x_test = (normalizer(x) for x in (self.x_train, self.x_dev, self.x_test))
        return Sets(x_train, self.y_train, x_dev, self.y_dev, x_test, self.y_test)

    def to(self, device: torch.device | str) -> Sets:
        """The same on a device."""
        return Sets(*(tensor.to(device) for tensor in vars(self).values()))


def split(x: Tensor, y: Tensor, *, seed: int, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> Sets:
    """Split by class, so that all three sets have each class in the same share."""
    generator = torch.Generator().manual_seed(seed)
    labels = y.flatten().long()
    (x_train, y_train), (x_dev, y_dev), (x_test, y_test) = train_dev_test_split(
        x, y, fractions=fractions, stratify=labels, generator=generator
    )
    return Sets(x_train, y_train, x_dev, y_dev, x_test, y_test)


def breast_cancer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[str]]:
    """All 569 rows: x (569, 30) as measured, y (569, 1) with 1 for a benign tumour, and the features' names."""
    from sklearn import datasets

    bunch = datasets.load_breast_cancer()
    x, y = torch.from_numpy(bunch.data).to(dtype), torch.from_numpy(bunch.target).to(dtype).unsqueeze(1)
    return x, y, [str(name) for name in bunch.feature_names]


def planar_flower(samples: int = 400, *, seed: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """A flower of four petals, r = 4 sin 4t, of which one half-turn is of one class and the other of the other.

    Returns:
        x (m, 2) with coordinates in about −5…5, y (m, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    half = samples // 2
    parts = []
    for turn in range(2):
        t = torch.linspace(turn * 3.12, (turn + 1) * 3.12, half) + noise * torch.randn(half, generator=generator)
        r = 4 * torch.sin(4 * t) + noise * torch.randn(half, generator=generator)
        parts.append(torch.stack([r * torch.sin(t), r * torch.cos(t)], dim=1))
    y = torch.cat([torch.zeros(half, 1), torch.ones(half, 1)])
    return torch.cat(parts), y


def moons(samples: int = 400, *, seed: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into one another: x (m, 2), y (m, 1)."""
    generator = torch.Generator().manual_seed(seed)
    half = samples // 2
    t = torch.linspace(0, math.pi, half)
    upper = torch.stack([t.cos(), t.sin()], dim=1)
    lower = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)
    x = torch.cat([upper, lower]) + noise * torch.randn(2 * half, 2, generator=generator)
    return x, torch.cat([torch.zeros(half, 1), torch.ones(half, 1)])


def circles(samples: int = 400, *, seed: int, noise: float = 0.1, factor: float = 0.5) -> tuple[Tensor, Tensor]:
    """A circle of radius 1 and one of radius ``factor`` inside it: x (m, 2), y (m, 1)."""
    generator = torch.Generator().manual_seed(seed)
    half = samples // 2
    t = torch.linspace(0, 2 * math.pi, half + 1)[:-1]
    ring = torch.stack([t.cos(), t.sin()], dim=1)
    x = torch.cat([ring, factor * ring]) + noise * torch.randn(2 * half, 2, generator=generator)
    return x, torch.cat([torch.zeros(half, 1), torch.ones(half, 1)])
