"""RMSprop."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torchnotes._checks import check_in_range
from torchnotes.optim._rule import (
    Block,
    Group,
    State,
    UpdateRule,
    check_average_weight,
    check_epsilon,
    check_flags,
    descend_,
    gradients,
    rate_of,
    zeros_like,
)


class RMSprop(UpdateRule):
    """RMSprop: divide each gradient by the root of its own mean square, s ← β₂ s + (1 − β₂) dw², w ← w − α dw/(√s + ε).

    In a direction in which the gradient oscillates with a large amplitude s is large and the step small. The square is
    taken elementwise; s starts at 0 and is not bias-corrected, so the first steps are longer, by 1/√(1 − β₂).

    ε stands outside the root by default, as in PyTorch, so that results equal ``torch.optim.RMSprop``'s. The notes'
    √(s + ε) is ``eps_form="inside"``: for s ≫ ε the two agree, at s = 0 one divides by ε and the other by √ε (1e-8
    against 1e-4). No single ε converts one into the other; √(s + ε) lies between √s and √s + √ε.

    Args:
        params: parameters, or groups of them as dicts.
        lr: the learning rate α ≥ 0.
        alpha: β₂ in [0, 1), the weight of the past; PyTorch's name and default (0.99).
        eps: ε ≥ 0.
        weight_decay: λ/m, added as λ/m W to dW first.
        momentum: with a value above 0, v ← momentum · v + dw/(√s + ε) and w ← w − α v, as in PyTorch.
        centered: subtract the squared mean of the gradients, so that s is their variance, as in PyTorch.
        eps_form: ``"outside"`` for √s + ε, ``"inside"`` for √(s + ε).
        maximize: climb instead.
        foreach: how many tensors one operation takes: all (True), one (False), or what suits the device (None).
        capturable: the step may be recorded in a CUDA graph.

    Memory: ``square_avg`` = s, one number per parameter; with momentum and centered one more each. States move both
    ways between this and ``torch.optim.RMSprop``.

    Raises:
        TypeError: a complex parameter, or at :meth:`step` a sparse gradient.
        ValueError: a hyperparameter out of range.

    Source: the notes, "RMSprop"; SPEC F4, G7.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = RMSprop([w], lr=0.01, alpha=0.99)
    >>> w.grad = torch.tensor([100.0, 0.001])  # a steep direction and a flat one
    >>> optimizer.step()
    >>> w.data  # one step of α/√(1 − β₂) in both
    tensor([0.9000, 0.9000])
    """

    _counts_steps = True  # only so that its state is torch.optim.RMSprop's
    _group_defaults: ClassVar[Group] = {"eps_form": "outside", "capturable": False, "foreach": None, "maximize": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        *,
        eps_form: Literal["outside", "inside"] = "outside",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "eps_form": eps_form,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_average_weight(group["alpha"], "alpha")
        check_epsilon(group["eps"], group["eps_form"])
        check_in_range(group["momentum"], "momentum", 0.0, math.inf, remedy="0 turns it off, 0.9 is usual")
        check_flags(group, "centered")

    def _new_state(self, param: Tensor, group: Group) -> State:
        state = {"square_avg": zeros_like(param)}
        if group["momentum"] > 0:
            state["momentum_buffer"] = zeros_like(param)
        if group["centered"]:
            state["grad_avg"] = zeros_like(param)
        return state

    def _update(self, block: Block, group: Group) -> None:
        beta2, eps = group["alpha"], group["eps"]
        grads, s = gradients(block, group), block.slot("square_avg")
        if group["capturable"]:
            torch._foreach_add_(block.slot("step"), 1)
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, grads, grads, value=1 - beta2)
        spread = s
        if group["centered"]:
            mean = block.slot("grad_avg")
            torch._foreach_lerp_(mean, grads, 1 - beta2)
            spread = list(torch._foreach_addcmul(s, mean, mean, value=-1))
        if group["eps_form"] == "inside":
            root = list(torch._foreach_add(spread, eps))
            torch._foreach_sqrt_(root)
        else:
            root = list(torch._foreach_sqrt(spread))
            torch._foreach_add_(root, eps)
        rate = rate_of(group)
        if group["momentum"] > 0:
            v = block.slot("momentum_buffer")
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_addcdiv_(v, grads, root)
            descend_(block.params, v, rate)
        elif isinstance(rate, Tensor):
            torch._foreach_div_(root, rate)
            torch._foreach_addcdiv_(block.params, grads, root, value=-1)
        else:
            torch._foreach_addcdiv_(block.params, grads, root, value=-rate)
