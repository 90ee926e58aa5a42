"""What the tests of the training loop train on, and how."""

import torch
import torch.nn.functional as F

from torchnotes import optim
from torchnotes.training import Callback, fit


def samples(m, seed=0, dtype=torch.float64):
    """Inputs of four features, and a smooth target of two of them."""
    x = torch.randn(m, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def train(model, data, **kwargs):
    """Run fit with everything filled in that a test does not care about."""
    kwargs.setdefault("optimizer", optim.Adam(model.parameters(), 0.01))
    return fit(model, data, **{"loss": F.mse_loss, "epochs": 3, "progress": False, **kwargs})


class Stop(Exception):
    """In place of a kill."""


class StopAt(Callback):
    """Breaks the run off after a step; never where the step is None."""

    def __init__(self, step):
        self.at = step

    def on_step(self, run):
        if run.step == self.at:
            raise Stop
