"""Gradient descent."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from torchnotes.optim._rule import Block, Group, UpdateRule, descend_, gradients, rate_of


class GradientDescent(UpdateRule):
    """Gradient descent: w ← w − α dw.

    The same rule for every w and every b (SPEC G13). On the whole training set at once it is batch gradient descent,
    on one sample at a time stochastic, in between mini-batch gradient descent: only what ``dw`` was computed from
    differs.

    Equal to ``torch.optim.SGD(params, lr)``, bit for bit.

    Args:
        params: parameters, or groups of them as dicts.
        lr: the learning rate α ≥ 0, a number or a tensor of one element.
        weight_decay: λ/m of the penalty λ/(2m) Σ‖W‖² on the cost, which adds λ/m W to dW. It applies to every
            parameter of the group; :func:`torchnotes.optim.l2_groups` spares the biases as the notes do.
        maximize: climb instead.
        foreach: how many tensors one operation takes: all (True), one (False), or what suits the device (None).
        capturable: the step may be recorded in a CUDA graph; a learning rate held in a tensor on the device can then
            be changed between replays.

    Memory: no state. What ``state_dict`` holds loads into ``torch.optim.SGD``, and the other way round.

    Raises:
        TypeError: a complex parameter, or at :meth:`step` a sparse gradient.
        ValueError: a hyperparameter out of range.

    Source: the notes, "gradient descent"; SPEC F1.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = GradientDescent([w], lr=0.25)
    >>> (w**2).sum().backward()  # dw = 2w
    >>> optimizer.step()
    >>> w.data
    tensor([ 0.5000, -1.0000])
    """

    _stateless = True
    _group_defaults: ClassVar[Group] = {"capturable": False, "foreach": None, "maximize": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "momentum": 0.0,  # these three so that the state loads into torch.optim.SGD
                "dampening": 0.0,
                "nesterov": False,
            },
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group.get("momentum", 0) != 0:  # a state saved by torch.optim.SGD
            raise ValueError(
                f"GradientDescent has no momentum, got momentum={group['momentum']!r}; load the state into Momentum."
            )

    def _update(self, block: Block, group: Group) -> None:
        descend_(block.params, gradients(block, group), rate_of(group))
