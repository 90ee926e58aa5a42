"""The model's cost on a set, and its predictions: in evaluation mode, left in the mode it was found in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes._checks import check_tensor

Loss = Callable[[Any, Any], Tensor]


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into training or evaluation mode, and each back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss,
    metrics: Mapping[str, Loss] | None = None,
    batch_size: int = 1024,
) -> dict[str, float]:
    """Mean loss and metrics of a model over a set, in evaluation mode and without gradients.

    Args:
        model: the model.
        x: inputs, (m, ...).
        y: targets, (m, ...).
        loss: ``loss(model(x), y)``, the mean over the samples it is given.
        metrics: further such functions by name.
        batch_size: samples at a time; the means are weighted by the size of each batch.

    Returns:
        ``{"loss": ..., **metrics}``.

    Raises:
        TypeError: x or y is not a tensor.
        ValueError: no samples, or not as many targets as inputs.

    >>> evaluate(nn.Identity(), torch.ones(4, 1), torch.zeros(4, 1), loss=nn.functional.mse_loss)
    {'loss': 1.0}
    """
    check_tensor(x, "x")
    check_tensor(y, "y")
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"the set must hold samples, as many targets as inputs, got x {tuple(x.shape)} and y {tuple(y.shape)}; "
            "check the split."
        )
    functions = {"loss": loss, **(metrics or {})}
    totals = dict.fromkeys(functions, 0.0)
    device = next((p.device for p in model.parameters()), x.device)
    with mode(model, False), torch.no_grad():
        for start in range(0, len(x), batch_size):
            xb, yb = (value[start : start + batch_size].to(device) for value in (x, y))
            output = model(xb)
            for name, function in functions.items():
                totals[name] += float(function(output, yb)) * len(xb)
    return {name: total / len(x) for name, total in totals.items()}


def predict(model: nn.Module, x: Tensor, *, dropout_passes: int = 0, batch_size: int = 1024) -> Tensor:
    """The model's outputs, in evaluation mode: no dropout, batch norm by its running averages.

    With ``dropout_passes=k`` the average of k passes with dropout on instead, which gives nearly the same (exactly, for
    one linear layer and k → ∞); batch norm stays in evaluation mode.

    Source: the notes, "dropout" (nothing is dropped at test time); SPEC F13.

    >>> predict(nn.Dropout(0.5), torch.ones(2, 2))
    tensor([[1., 1.],
            [1., 1.]])
    """
    check_tensor(x, "x")
    if isinstance(dropout_passes, bool) or not isinstance(dropout_passes, int) or dropout_passes < 0:
        raise ValueError(
            f"dropout_passes must be an integer of at least 0, got {dropout_passes!r}; 0 is evaluation mode."
        )
    device = next((p.device for p in model.parameters()), x.device)
    with mode(model, dropout_passes > 0), torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.training = False
        passes = max(dropout_passes, 1)
        outputs = []
        for xb in x.split(batch_size):
            total = model(xb.to(device))
            for _ in range(passes - 1):
                total = total + model(xb.to(device))
            outputs.append(total / passes)
    return torch.cat(outputs)
