"""Real data without a download: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, as normalised tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchnotes.data import InputNormalizer

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Training and dev images as rows of 64 pixels, with their labels.

    Attributes:
        x_train: (m, 64), normalised to mean 0 and variance 1 per pixel.
        y_train: (m,) labels 0…9.
        x_dev: the rest, normalised by the training set's μ and σ.
        y_dev: their labels.
    """

    x_train: Tensor
    y_train: Tensor
    x_dev: Tensor
    y_dev: Tensor


def load_digits(*, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Digits:
    """Shuffle by seed, split 80/20 into training and dev set, normalise both by the training set's μ and σ.

    The shuffle is drawn on the CPU, so that every device sees the same split.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    x, y = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, dev = order.tensor_split([len(x) * 4 // 5])
    normalizer = InputNormalizer().fit(x[train])
    return Digits(
        x_train=normalizer(x[train]).to(device, dtype),
        y_train=y[train].to(device),
        x_dev=normalizer(x[dev]).to(device, dtype),
        y_dev=y[dev].to(device),
    )
