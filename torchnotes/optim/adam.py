"""Adam."""

from __future__ import annotations

import math
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
    check_epsilon,
    check_flags,
    gradients,
    rate_of,
    zeros_like,
)


class Adam(UpdateRule):
    """Adam: momentum and RMSprop together, both bias-corrected.

    v ← β₁ v + (1 − β₁) dw,  s ← β₂ s + (1 − β₂) dw²,  v̂ = v/(1 − β₁ᵗ),  ŝ = s/(1 − β₂ᵗ),  w ← w − α v̂/(√ŝ + ε)

    t counts the parameter's own steps from 1. v is corrected with β₁ and s with β₂, for w and b alike (the notes print
    β₁ under one S: SPEC G6). Both start at 0; without the correction the first step would be α (1 − β₁)/√(1 − β₂),
    about 3 α, instead of α.

    ε stands outside the root by default, as in the paper (Kingma and Ba, 2015) and in PyTorch, so that results equal
    ``torch.optim.Adam``'s to round-off. The notes' √(ŝ + ε) is ``eps_form="inside"``; see
    :class:`torchnotes.optim.RMSprop` on how the two differ.

    Computed as w ← w − α (√c₂/c₁) v/(√s + ε √c₂) with c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ: both sides of the fraction times √c₂,
    which spares a pass over memory (inside the root: √(s + ε c₂)).

    Args:
        params: parameters, or groups of them as dicts.
        lr: the learning rate α ≥ 0.
        betas: (β₁, β₂), each in [0, 1).
        eps: ε ≥ 0.
        weight_decay: λ/m, added as λ/m W to dW first (the notes' L2, not AdamW's decoupled decay).
        amsgrad: divide by the largest s so far, as in PyTorch.
        eps_form: ``"outside"`` for √ŝ + ε, ``"inside"`` for √(ŝ + ε).
        foreach: how many tensors one operation takes: all (True), one (False), or what suits the device (None).
        maximize: climb instead.
        capturable: the step may be recorded in a CUDA graph: t is then counted on the device.

    Memory: ``exp_avg`` = v and ``exp_avg_sq`` = s, two numbers per parameter (three with amsgrad). States move both
    ways between this and ``torch.optim.Adam``.

    Raises:
        TypeError: a complex parameter, or at :meth:`step` a sparse gradient.
        ValueError: a hyperparameter out of range.

    Source: the notes, "the Adam optimisation algorithm"; SPEC F5, G6, G7.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = Adam([w], lr=0.01)
    >>> w.grad = torch.tensor([100.0, 0.001])
    >>> optimizer.step()
    >>> w.data  # the first step is α in every direction
    tensor([0.9900, 0.9900])
    """

    _counts_steps = True
    _group_defaults: ClassVar[Group] = {"eps_form": "outside", "capturable": False, "foreach": None, "maximize": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        eps_form: Literal["outside", "inside"] = "outside",
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": _numbers(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "eps_form": eps_form,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        group["betas"] = _numbers(group["betas"])
        for name, beta in zip(("betas[0]", "betas[1]"), group["betas"], strict=True):
            check_average_weight(beta, name)
        check_epsilon(group["eps"], group["eps_form"])
        check_flags(group, "amsgrad")
        if group.get("decoupled_weight_decay"):  # a state saved by torch.optim.AdamW
            raise ValueError(
                "Adam adds weight decay to the gradient, got decoupled_weight_decay=True; load the state into AdamW."
            )

    def _new_state(self, param: Tensor, group: Group) -> State:
        state = {"exp_avg": zeros_like(param), "exp_avg_sq": zeros_like(param)}
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = zeros_like(param)
        return state

    def _update(self, block: Block, group: Group) -> None:
        beta1, beta2 = group["betas"]
        grads, v, s = gradients(block, group), block.slot("exp_avg"), block.slot("exp_avg_sq")
        torch._foreach_lerp_(v, grads, 1 - beta1)  # v + (1 − β₁)(dw − v) = β₁ v + (1 − β₁) dw
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, grads, grads, value=1 - beta2)
        if group["amsgrad"]:
            largest = block.slot("max_exp_avg_sq")
            torch._foreach_maximum_(largest, s)
            s = largest
        apply = _apply_on_device if group["capturable"] else _apply
        apply(block, group, v, s)


def _apply(block: Block, group: Group, v: list[Tensor], s: list[Tensor]) -> None:
    """Take the step w ← w − α v̂/(√ŝ + ε), with t known to the program."""
    beta1, beta2 = group["betas"]
    c1, c2 = 1 - beta1**block.step, 1 - beta2**block.step
    if group["eps_form"] == "inside":
        root = list(torch._foreach_add(s, group["eps"] * c2))
        torch._foreach_sqrt_(root)
    else:
        root = list(torch._foreach_sqrt(s))
        torch._foreach_add_(root, group["eps"] * math.sqrt(c2))
    rate = rate_of(group)
    assert not isinstance(rate, Tensor)
    torch._foreach_addcdiv_(block.params, v, root, value=-rate * math.sqrt(c2) / c1)


def _apply_on_device(block: Block, group: Group, v: list[Tensor], s: list[Tensor]) -> None:
    """The same with t on the device, one number per parameter, so that a captured graph counts on."""
    steps = block.slot("step")
    torch._foreach_add_(steps, 1)
    c1, c2 = (_correction(steps, beta) for beta in group["betas"])
    if group["eps_form"] == "inside":
        root = list(torch._foreach_div(s, c2))
        torch._foreach_add_(root, group["eps"])
        torch._foreach_sqrt_(root)
    else:
        root = list(torch._foreach_sqrt(s))
        torch._foreach_div_(root, list(torch._foreach_sqrt(c2)))
        torch._foreach_add_(root, group["eps"])
    torch._foreach_div_(c1, rate_of(group))  # c₁/α
    torch._foreach_mul_(root, c1)
    torch._foreach_addcdiv_(block.params, v, root, value=-1)


def _correction(steps: list[Tensor], beta: float) -> list[Tensor]:
    """1 − βᵗ = −expm1(t ln β): t is a float32, in which 1 − 0.999ᵗ itself would lose four digits at t = 1."""
    exponent = list(torch._foreach_mul(steps, math.log(beta) if beta > 0 else -math.inf))
    torch._foreach_expm1_(exponent)
    torch._foreach_neg_(exponent)
    return exponent


def _numbers(betas: tuple[float | Tensor, float | Tensor]) -> tuple[float, float]:
    """β₁ and β₂ as numbers; tensors of one element are read once, here."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be a pair (β₁, β₂), got {betas!r}; (0.9, 0.999) is usual.")
    if any(isinstance(beta, Tensor) and beta.numel() != 1 for beta in betas):
        raise ValueError(f"betas must be numbers or tensors of one element, got {betas!r}; (0.9, 0.999) is usual.")
    first, second = (beta.item() if isinstance(beta, Tensor) else beta for beta in betas)
    return first, second
