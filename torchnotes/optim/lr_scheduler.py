"""Learning-rate decay: the notes' five ways, as ``torch.optim.lr_scheduler.LRScheduler`` subclasses.

All count ``epoch`` as ``last_epoch``: 0 until the first call of ``step``, which belongs after each epoch's last
``optimizer.step()``. A decay is a closed form, α = α₀ · factor(epoch), applied in steps, lr ← lr · factor(epoch) /
factor(epoch − 1): so several of them, and PyTorch's own, can be stepped one after another or put into
``ChainedScheduler`` and ``SequentialLR``, and their factors multiply.

Resume as with any scheduler: build the optimiser and the scheduler anew, then ``load_state_dict`` on both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchnotes._checks import check_in_range, describe

__all__ = ["InverseTimeDecay", "InverseSqrtDecay", "ExponentialDecay", "StaircaseDecay", "ManualDecay"]


class Decay(LRScheduler):
    """A decay in closed form: a subclass gives ``factor(epoch)``, positive, the share of α₀ left in that epoch."""

    def factor(self, epoch: int) -> float:
        """α/α₀ in ``epoch``."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The rates for this epoch, from the rates of the last: lr · factor(epoch)/factor(epoch − 1)."""
        epoch = self.last_epoch
        if epoch == 0:
            ratio = self.factor(0)
        elif self._step_count == 1:  # built to go on from last_epoch: the rates are there already
            ratio = 1.0
        else:
            ratio = self.factor(epoch) / self.factor(epoch - 1)
        return [group["lr"] * ratio for group in self.optimizer.param_groups]

    def curve(self, epochs: int) -> list[float]:
        """The rates of the first parameter group in epochs 0, 1, … by the closed form: what will happen, to draw."""
        return [float(self.base_lrs[0]) * self.factor(epoch) for epoch in range(epochs)]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class InverseTimeDecay(Decay):
    """Inverse-time decay: α = α₀ / (1 + decay_rate · epoch).

    Args:
        optimizer: whose rates to set.
        decay_rate: ≥ 0; with 1 the rate is halved after the first epoch.
        last_epoch: the last epoch done, to go on from it; -1 to start.

    Source: the notes, "learning-rate decay"; SPEC F6.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    >>> [round(rate, 4) for rate in InverseTimeDecay(optimizer, decay_rate=1.0).curve(5)]
    [0.2, 0.1, 0.0667, 0.05, 0.04]
    """

    def __init__(self, optimizer: Optimizer, decay_rate: float, last_epoch: int = -1) -> None:
        check_in_range(decay_rate, "decay_rate", 0.0, math.inf, remedy="a negative one would raise the rate")
        self.decay_rate = decay_rate
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        """1/(1 + decay_rate · epoch)."""
        return 1 / (1 + self.decay_rate * epoch)


class InverseSqrtDecay(Decay):
    """Inverse-square-root decay: α = k α₀ / √epoch.

    At epoch 0 the formula has no value: it counts from 1. The rate of epoch 1, k α₀, is used there.

    Args:
        optimizer: whose rates to set.
        k: > 0.
        last_epoch: the last epoch done, to go on from it; -1 to start.

    Source: the notes, "learning-rate decay"; SPEC F6.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    >>> [round(rate, 4) for rate in InverseSqrtDecay(optimizer, k=0.5).curve(5)]
    [0.1, 0.1, 0.0707, 0.0577, 0.05]
    """

    def __init__(self, optimizer: Optimizer, k: float = 1.0, last_epoch: int = -1) -> None:
        check_in_range(k, "k", 0.0, math.inf, low_open=True, remedy="1 leaves the rate of epoch 1 as it is")
        self.k = k
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        """k/√epoch."""
        return self.k / math.sqrt(max(epoch, 1))


class ExponentialDecay(Decay):
    """Exponential decay: α = gamma^epoch · α₀.

    Equal to ``torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)``.

    Args:
        optimizer: whose rates to set.
        gamma: in (0, 1]; the notes' 0.95.
        last_epoch: the last epoch done, to go on from it; -1 to start.

    Source: the notes, "learning-rate decay"; SPEC F6.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    >>> [round(rate, 4) for rate in ExponentialDecay(optimizer, gamma=0.95).curve(4)]
    [0.2, 0.19, 0.1805, 0.1715]
    """

    def __init__(self, optimizer: Optimizer, gamma: float = 0.95, last_epoch: int = -1) -> None:
        check_in_range(gamma, "gamma", 0.0, 1.0, low_open=True, remedy="it is what is left of the rate after an epoch")
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        """gamma^epoch."""
        return float(self.gamma**epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rates for this epoch: the last ones times gamma, also where gamma^epoch has underflowed."""
        if self._step_count == 1:
            return super().get_lr()
        return [group["lr"] * self.gamma for group in self.optimizer.param_groups]


class StaircaseDecay(Decay):
    """Discrete decay, by steps: α = gamma^⌊epoch/step_size⌋ · α₀.

    Equal to ``torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma)``.

    Args:
        optimizer: whose rates to set.
        step_size: epochs on one stair.
        gamma: in (0, 1]; 0.5 halves the rate at each step down.
        last_epoch: the last epoch done, to go on from it; -1 to start.

    Source: the notes, "learning-rate decay"; SPEC F6.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    >>> [round(rate, 4) for rate in StaircaseDecay(optimizer, step_size=2).curve(5)]
    [0.2, 0.2, 0.1, 0.1, 0.05]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.5, last_epoch: int = -1) -> None:
        if isinstance(step_size, bool) or not isinstance(step_size, int) or step_size < 1:
            raise ValueError(
                f"step_size must be an integer of at least 1, got {step_size!r}; it is the length of a stair in epochs."
            )
        check_in_range(gamma, "gamma", 0.0, 1.0, low_open=True, remedy="it is what is left of the rate after a stair")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        """gamma^⌊epoch/step_size⌋."""
        return float(self.gamma ** (epoch // self.step_size))

    def get_lr(self) -> list[float | Tensor]:
        """The rates for this epoch: the last ones, times gamma at the edge of a stair."""
        if self._step_count == 1:
            return super().get_lr()
        ratio = self.gamma if self.last_epoch % self.step_size == 0 else 1.0
        return [group["lr"] * ratio for group in self.optimizer.param_groups]


class ManualDecay(Decay):
    """Decay by hand: rates for the epochs from which they hold, given beforehand or while watching the run.

    The rates are those of the first parameter group; other groups keep their proportion to it.

    Args:
        optimizer: whose rates to set.
        rates: the rate from each epoch on, such as ``{10: 0.01, 20: 0.001}``; before the first it is α₀.
        last_epoch: the last epoch done, to go on from it; -1 to start.

    Raises:
        ValueError: an epoch below 0, a rate that is not positive, or groups of which the first has rate 0.

    Source: the notes, "learning-rate decay"; SPEC F6.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    >>> [round(rate, 4) for rate in ManualDecay(optimizer, rates={1: 0.1, 3: 0.01}).curve(5)]
    [0.2, 0.1, 0.1, 0.01, 0.01]
    """

    def __init__(self, optimizer: Optimizer, rates: Mapping[int, float] | None = None, last_epoch: int = -1) -> None:
        self.rates: dict[int, float] = {}
        self._first_rate: float | None = None
        for epoch, rate in (rates or {}).items():
            self._enter(epoch, rate)
        super().__init__(optimizer, last_epoch)

    def set_rate(self, rate: float) -> None:
        """Set the rate now; it holds from this epoch on, until the next one given. It is kept in ``state_dict``."""
        before = self.factor(self.last_epoch)
        self._enter(self.last_epoch, rate)
        ratio = self.factor(self.last_epoch) / before
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].mul_(ratio)  # in place: a captured graph reads this tensor
            else:
                group["lr"] *= ratio
        self._last_lr = [_copied(group["lr"]) for group in self.optimizer.param_groups]

    def factor(self, epoch: int) -> float:
        """The rate given for ``epoch``, as a share of the first group's α₀."""
        given = [start for start in self.rates if start <= epoch]
        if not given:
            return 1.0
        if self._first_rate is None:  # read once: it may lie on a GPU, which would be waited for
            self._first_rate = float(self.base_lrs[0])
        if self._first_rate <= 0:
            raise ValueError(
                f"the optimiser's first learning rate must be positive to be decayed, got {self._first_rate!r}; "
                "put a group with a positive rate first."
            )
        return self.rates[max(given)] / self._first_rate

    def _enter(self, epoch: Any, rate: Any) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"rates must map epochs from 0 to rates, got {describe(epoch)}; use {{epoch: rate}}.")
        check_in_range(rate, f"rates[{epoch}]", 0.0, math.inf, low_open=True, remedy="stop training instead of rate 0")
        self.rates[epoch] = rate


def _copied(rate: float | Tensor) -> float | Tensor:
    return rate.clone() if isinstance(rate, Tensor) else rate
