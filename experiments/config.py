"""What every experiment's command line has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class CommonConfig:
    """The options of all experiments; each adds its own by inheriting."""

    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Of weights, splits and the order of samples."""
    log_dir: Path = Path("runs")
    """TensorBoard's folder; each experiment writes into a folder of its own name in it."""
    quick: bool = False
    """A few seconds instead of minutes: shows the machinery, not the whole story."""

    def __post_init__(self) -> None:
        """Refuse a device that PyTorch cannot use here, before anything has run."""
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"device must be one that PyTorch can use here, got {self.device!r} ({reason}); use --device cpu."
            ) from error
