"""What every update rule here shares: the checks, the state, and the order in which tensors are visited.

A rule writes its formula once, for lists of tensors (``torch._foreach_*``). The lists it gets are chosen here:

* on an accelerator one list holds every parameter of a device and dtype, so that each line is one kernel launch;
* on a CPU a list holds a few hundred thousand elements, so that what one line wrote is still in the cache when the
  next line reads it. A step over 100 million parameters is bound by memory traffic, and this is what saves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from torchnotes._checks import check_in_range, describe

Group = dict[str, Any]
State = dict[str, Any]

# Elements in one CPU block: 2¹⁸ float32 numbers are 1 MiB of each of parameter, gradient and state.
_BLOCK_ELEMENTS = 1 << 18
_ELEMENTS_PER_THREAD = 1 << 16


@dataclass
class Block:
    """Parameters updated together: of one device, one dtype, and one history."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]  # empty where the rule keeps none
    step: int  # t, from 1, where the rule counts steps and is not capturable
    fresh: bool  # the first step of these parameters

    def slot(self, name: str) -> list[Tensor]:
        """One entry of the state, for every parameter."""
        return [state[name] for state in self.states]


class UpdateRule(Optimizer):
    """A ``torch.optim.Optimizer`` whose subclass supplies a formula over lists of tensors.

    A subclass overrides ``_check_group`` (hyperparameters), ``_new_state`` (what a parameter starts with) and
    ``_update`` (the formula), and sets ``_counts_steps`` if the formula needs t.
    """

    _counts_steps: ClassVar[bool] = False
    _stateless: ClassVar[bool] = False
    # Options a state saved before they existed, or by the torch.optim twin, does not hold.
    _group_defaults: ClassVar[Group] = {}

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        self._check_group(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; its hyperparameters are checked as the constructor's are."""
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                if param.is_complex():
                    raise TypeError(
                        f"{type(self).__name__} takes real parameters, got {describe(param)}; "
                        "optimise torch.view_as_real(parameter) instead."
                    )
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient, once.

        Args:
            closure: recomputes the loss and its gradients first; its result is returned.

        Raises:
            TypeError: a sparse gradient; nothing has been updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = [(group, *self._with_gradients(group)) for group in self.param_groups]
        for group, params, grads in ready:
            for block in self._blocks(group, params, grads):
                self._update(block, group)
        return loss

    def _with_gradients(self, group: Group) -> tuple[list[Tensor], list[Tensor]]:
        params, grads = [], []
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                params.append(param)
                grads.append(grad)
                if grad.layout is not torch.strided:
                    raise TypeError(
                        f"{type(self).__name__} takes dense gradients, got a gradient of layout "
                        f"{str(grad.layout).removeprefix('torch.')} for a parameter of shape {tuple(param.shape)}; "
                        "pass sparse=False to the embedding, or use torch.optim.SparseAdam."
                    )
        return params, grads

    def _blocks(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> Iterable[Block]:
        if not params:
            return
        states: list[State] = []
        histories = [(0, False)]
        if not self._stateless:
            states = [self.state[param] for param in params]
            histories = self._advance(states, params, group)
        for indices in _alike(params, histories):
            in_cache = not self._stateless and _visits_by_part(group["foreach"], params[indices[0]].device)
            for part in _parts(params, indices, group["foreach"]) if in_cache else [indices]:
                step, fresh = histories[part[0] if len(histories) > 1 else 0]
                if len(part) == len(params):
                    yield Block(params, grads, states, step, fresh)
                else:
                    yield Block(
                        [params[i] for i in part],
                        [grads[i] for i in part],
                        [states[i] for i in part] if states else [],
                        step,
                        fresh,
                    )

    def _advance(self, states: list[State], params: list[Tensor], group: Group) -> list[tuple[int, bool]]:
        """Count this step: for each parameter t, and whether it is the first; one entry if it is the same for all.

        t is 0 where it is counted on the device, or not at all.
        """
        fresh = [not state for state in states]
        if any(fresh):
            for state, param in zip(states, params, strict=True):
                if not state:
                    state.update(self._new_state(param, group))
                    if self._counts_steps:
                        on_device = torch.zeros((), dtype=torch.float32, device=param.device)
                        state["step"] = on_device if group["capturable"] else 0
        if not self._counts_steps or group["capturable"]:
            return [(0, fresh[0])] if fresh.count(fresh[0]) == len(fresh) else [(0, first) for first in fresh]
        for state in states:
            state["step"] += 1
        steps = [state["step"] for state in states]
        if steps.count(steps[0]) == len(steps):
            return [(steps[0], steps[0] == 1)]
        return [(step, step == 1) for step in steps]

    def load_state_dict(self, state_dict: State) -> None:
        """Go on from a state saved by this rule or by its ``torch.optim`` twin.

        Raises:
            ValueError: the state of another rule, or with other groups; this optimiser is then as it was before.
        """
        before = self.state, self.param_groups
        try:
            super().load_state_dict(state_dict)
        except Exception:
            self.state, self.param_groups = before
            raise

    def __setstate__(self, state: State) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self._group_defaults.items():
                group.setdefault(name, value)
            missing = self.defaults.keys() - group.keys() - {"differentiable"}  # that one PyTorch puts in by itself
            if missing:
                raise ValueError(
                    f"the state must be one of {type(self).__name__} or of its torch.optim twin, got a group without "
                    f"{', '.join(sorted(missing))}; load it into the rule that saved it."
                )
            self._check_group(group)
            for param in group["params"]:
                _convert_step(self.state.get(param, {}), param, group)

    def _new_state(self, param: Tensor, group: Group) -> State:
        return {}

    def _check_group(self, group: Group) -> None:
        check_rate(group["lr"], group["capturable"])
        check_in_range(
            group["weight_decay"], "weight_decay", 0.0, math.inf, remedy="it is λ/m of the penalty λ/(2m) Σ‖W‖²"
        )
        check_flags(group, "maximize", "capturable")
        if group["foreach"] is not None:
            check_flags(group, "foreach")

    def _update(self, block: Block, group: Group) -> None:
        raise NotImplementedError


def gradients(block: Block, group: Group) -> list[Tensor]:
    """The gradients to descend along: of −J when maximising, with weight decay's λ/m W added.

    J + λ/(2m) Σ‖W‖² has the gradient dW + λ/m W, so ``weight_decay`` is λ/m. (SPEC A14)
    """
    grads = block.grads
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"] != 0:
        grads = list(torch._foreach_add(grads, block.params, alpha=group["weight_decay"]))
    return grads


def rate_of(group: Group) -> float | Tensor:
    """α as a number, or as a tensor on the device where a captured step must read it at replay.

    A tensor on the CPU is read when the step is launched.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and not (group["capturable"] and not lr.is_cpu):
        return float(lr)
    assert isinstance(lr, (float, int, Tensor))
    return lr if not isinstance(lr, Tensor) else lr.reshape(())


def descend_(params: list[Tensor], directions: list[Tensor], rate: float | Tensor) -> None:
    """Take the step w ← w − rate · direction, in place."""
    if isinstance(rate, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(directions, rate))
    else:
        torch._foreach_add_(params, directions, alpha=-rate)


def zeros_like(param: Tensor) -> Tensor:
    """A state of zeros, laid out as the parameter is."""
    return torch.zeros_like(param, memory_format=torch.preserve_format)


def check_rate(lr: object, capturable: bool) -> None:
    """Refuse a learning rate that is negative, NaN, or a tensor of several elements."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got {describe(lr)}; use one per group.")
        lr = None if capturable and not lr.is_cpu else float(lr)  # reading the device would break a capture
    if lr is not None:
        check_in_range(lr, "lr", 0.0, math.inf, remedy="a negative rate would climb; use maximize=True for that")


def check_flags(group: Group, *names: str) -> None:
    """Refuse anything but True and False."""
    for name in names:
        if not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True or False, got {describe(group[name])}; pass it by name.")


def check_average_weight(value: object, name: str) -> None:
    """Refuse a β outside [0, 1): at 1 the average would never see a gradient."""
    check_in_range(value, name, 0.0, 1.0, high_open=True, remedy="it averages about the last 1/(1−β) gradients")


def check_epsilon(value: object, form: object) -> None:
    """Refuse a negative ε and an unknown place for it."""
    check_in_range(value, "eps", 0.0, math.inf, remedy="it only keeps the division from 0; 1e-8 is usual")
    if form not in ("outside", "inside"):
        raise ValueError(f"eps_form must be 'outside' for √s + ε or 'inside' for √(s + ε), got {form!r}; pick one.")


def _alike(params: list[Tensor], histories: list[tuple[int, bool]]) -> Iterable[list[int]]:
    """Indices of parameters of one device, one dtype and one history."""
    # PyTorch's own grouping, in C++: reading 200 devices and dtypes from Python takes longer than some steps.
    grouped = Optimizer._group_tensors_by_device_and_dtype([params], with_indices=True)  # type: ignore[list-item]
    uniform = histories.count(histories[0]) == len(histories)
    for _, indices in grouped.values():
        if uniform:
            yield indices
            continue
        by_history: dict[tuple[int, bool], list[int]] = {}
        for i in indices:
            by_history.setdefault(histories[i], []).append(i)
        yield from by_history.values()


def _visits_by_part(foreach: bool | None, device: torch.device) -> bool:
    return not foreach and (foreach is False or device.type == "cpu")


def _parts(params: list[Tensor], indices: list[int], foreach: bool | None) -> Iterable[list[int]]:
    """The indices in runs small enough to stay in a CPU's cache; one by one where ``foreach`` is False."""
    limit = 0 if foreach is False else max(_BLOCK_ELEMENTS, _ELEMENTS_PER_THREAD * torch.get_num_threads())
    part: list[int] = []
    elements = 0
    for i in indices:
        size = params[i].numel()
        if part and elements + size > limit:
            yield part
            part, elements = [], 0
        part.append(i)
        elements += size
    yield part


def _convert_step(state: State, param: Tensor, group: Group) -> None:
    if "step" not in state:
        return
    if group["capturable"]:
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=param.device)
    else:
        state["step"] = int(state["step"])
