"""For test suites: fail when a model's signal does."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchnotes.diagnostics.probing import Loss, probe
from torchnotes.diagnostics.report import SignalReport


class UnhealthySignal(AssertionError):
    """A model's activations or gradients vanish, explode or are not finite; the message is the report.

    Attributes:
        report: what the probe found.
    """

    def __init__(self, report: SignalReport) -> None:
        super().__init__(f"the model's signal is not healthy: {report.verdict}\n{report}")
        self.report = report


def assert_healthy(model: nn.Module, inputs: Any, target: Any = None, *, loss: Loss | None = None) -> SignalReport:
    """Probe a model and raise unless its activations and its gradients are healthy; for pytest.

    Args:
        model: any module, left as it was found.
        inputs: as for :func:`probe`.
        target: as for :func:`probe`.
        loss: as for :func:`probe`.

    Returns:
        The report of a healthy model.

    Raises:
        UnhealthySignal: an ``AssertionError`` whose text is the report, and which carries it.
        TypeError, ValueError: as for :func:`probe`.

    >>> import torch
    >>> from torchnotes.init import initialize_
    >>> net = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(32, 32), nn.ReLU())])
    >>> x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    >>> _ = initialize_(net, "small")
    >>> assert_healthy(net, x)
    Traceback (most recent call last):
        ...
    torchnotes.diagnostics.testing.UnhealthySignal: the model's signal is not healthy: ...
    """
    report = probe(model, inputs, target, loss=loss)
    if not report.healthy:
        raise UnhealthySignal(report)
    return report
