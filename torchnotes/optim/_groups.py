"""Which parameters a penalty applies to."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from torchnotes._checks import check_in_range, describe


def l2_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which only the weights decay, never the biases, as the notes' L2 has it.

    The cost J + λ/(2m) Σ‖W‖² adds λ/m W to dW, so pass λ/m. A weight is a parameter of two or more axes; vectors and
    scalars (biases, batch norm's γ and β) are left alone. Frozen parameters are left out.

    Args:
        model: the network.
        weight_decay: λ/m ≥ 0.

    Returns:
        Two groups for any ``torch.optim.Optimizer``: the weights, and the rest with ``weight_decay=0``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a negative ``weight_decay``.

    Source: the notes, "regularisation"; SPEC A14.

    >>> groups = l2_groups(nn.Linear(3, 2), weight_decay=0.1)
    >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    [(0.1, [(2, 3)]), (0.0, [(2,)])]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {describe(model)}; pass the network, not its parameters."
        )
    check_in_range(weight_decay, "weight_decay", 0.0, math.inf, remedy="it is λ/m of the penalty λ/(2m) Σ‖W‖²")
    trained = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in trained if param.dim() >= 2], "weight_decay": weight_decay},
        {"params": [param for param in trained if param.dim() < 2], "weight_decay": 0.0},
    ]
