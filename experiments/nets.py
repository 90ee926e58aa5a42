"""Nets as the experiments build and judge them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchnotes.init import initialize_
from torchnotes.nn import MLP


def new_net(sizes: Sequence[int], activation: str = "relu", *, seed: int, device: torch.device | str = "cpu") -> MLP:
    """An MLP whose weights are drawn on the CPU, so that every device starts from the same ones.

    Args:
        sizes: inputs, hidden units, outputs.
        activation: of the hidden layers.
        seed: of the weights.
        device: where it ends up.
    """
    net = MLP(sizes, activation)
    initialize_(net, generator=torch.Generator().manual_seed(seed))
    return net.to(device)


def error_rate(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of samples whose largest score is not their class: a metric for ``fit`` and ``evaluate``."""
    return (scores.argmax(dim=1) != labels).to(torch.float64).mean()
