"""Gradient descent with momentum."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torchnotes.optim._rule import (
    Block,
    Group,
    State,
    UpdateRule,
    check_average_weight,
    check_flags,
    descend_,
    gradients,
    rate_of,
    zeros_like,
)


class Momentum(UpdateRule):
    """Gradient descent along the exponentially weighted average of the gradients: w ← w − α v.

    Two forms are in use, both written here with β = ``momentum`` and v = 0 at the start:

    * ``form="average"``, the notes': v ← β v + (1 − β) dw. v is an average, on the scale of one gradient.
    * ``form="sum"``, PyTorch's: v ← β v + dw. v is larger by 1/(1 − β), so the same α makes larger steps.

    Conversion: "average" with α walks the path of "sum" with α (1 − β), step for step, as long as β stays fixed. So
    ``Momentum(params, lr, 0.9)`` is ``torch.optim.SGD(params, 0.1 * lr, 0.9)``, and ``Momentum(params, lr, 0.9,
    form="sum")`` is ``torch.optim.SGD(params, lr, 0.9)``. (SGD's ``dampening=β`` is the notes' form except that its
    first step is not damped.)

    In the direction in which the gradient keeps its sign the average keeps its size; where it oscillates, the
    average cancels.

    Args:
        params: parameters, or groups of them as dicts.
        lr: the learning rate α ≥ 0.
        momentum: β in [0, 1); about the last 1/(1 − β) gradients count.
        dampening: with ``form="sum"`` only, PyTorch's: v ← β v + (1 − dampening) dw, the first step undamped.
        weight_decay: λ/m, added as λ/m W to dW before the average is taken.
        nesterov: step along where v will be: the current gradient, weighted as in v, plus β v.
        form: ``"average"`` or ``"sum"``.
        maximize: climb instead.
        foreach: how many tensors one operation takes: all (True), one (False), or what suits the device (None).
        capturable: the step may be recorded in a CUDA graph.

    Memory: ``momentum_buffer`` = v, one number per parameter. A state saved by ``torch.optim.SGD`` loads, as "sum".

    Raises:
        TypeError: a complex parameter, or at :meth:`step` a sparse gradient.
        ValueError: a hyperparameter out of range, or dampening with ``form="average"``.

    Source: the notes, "gradient descent with momentum"; SPEC F3, G16.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = Momentum([w], lr=1.0, momentum=0.9)
    >>> for _ in range(2):
    ...     w.grad = torch.tensor([1.0])
    ...     optimizer.step()  # v = 0.1, then 0.19
    >>> w.data
    tensor([0.7100])
    """

    _group_defaults: ClassVar[Group] = {
        "form": "sum",
        "capturable": False,
        "foreach": None,
        "maximize": False,
    }  # SGD's state is a sum

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        form: Literal["average", "sum"] = "average",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "form": form,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_average_weight(group["momentum"], "momentum")
        check_flags(group, "nesterov")
        if group["form"] not in ("average", "sum"):
            raise ValueError(
                f"form must be 'average' for βv + (1−β)dw or 'sum' for βv + dw, got {group['form']!r}; pick one."
            )
        if group["dampening"] != 0 and (group["form"] == "average" or group["nesterov"]):
            raise ValueError(
                f"dampening must be 0 with form='average' and with nesterov, got {group['dampening']!r}; "
                "the average is already damped by 1−β; use form='sum' for PyTorch's dampening."
            )

    def _new_state(self, param: Tensor, group: Group) -> State:
        return {"momentum_buffer": zeros_like(param)}

    def _update(self, block: Block, group: Group) -> None:
        beta = group["momentum"]
        grads, v = gradients(block, group), block.slot("momentum_buffer")
        if group["form"] == "average":
            torch._foreach_lerp_(v, grads, 1 - beta)  # v + (1 − β)(dw − v) = β v + (1 − β) dw
        else:
            torch._foreach_mul_(v, beta)
            torch._foreach_add_(v, grads, alpha=1.0 if block.fresh else 1 - group["dampening"])
        directions = v
        if group["nesterov"]:
            weight = 1 - beta if group["form"] == "average" else 1.0
            directions = list(torch._foreach_mul(v, beta))
            torch._foreach_add_(directions, grads, alpha=weight)
        descend_(block.params, directions, rate_of(group))
