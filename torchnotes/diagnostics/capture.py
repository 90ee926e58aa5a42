"""Hooks on every module of a model: what comes out of it, and the gradient that arrives there.

The gradient is read by a hook on the output tensor, set inside the module's forward hook. A module's own backward
hooks would refuse in-place activations; a tensor's hook belongs to the value before it was overwritten.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchnotes.diagnostics.moments import Ends, Pending, flat_ends, measure, measure_scale, resolve
from torchnotes.diagnostics.records import Direction, LayerSignal, Moments, Role
from torchnotes.init.following import activation_name
from torchnotes.init.network import fans, is_layer

Observer = Callable[["Call", Tensor, Direction], None]
"""Told of each output, and of each gradient, as it is recorded: for statistics per unit."""


@dataclass
class Call:
    """One call of one module, while it is being measured."""

    name: str
    module: nn.Module
    call: int
    depth: int
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype
    channel_axis: int
    activation: Pending
    gradient: Pending | None = None
    hooked: bool = False

    @property
    def label(self) -> str:
        """As in :class:`LayerSignal`."""
        name = self.name or "(model)"
        return f"{name}#{self.call}" if self.call else name


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def role_of(module: nn.Module) -> Role:
    """What a module does to the signal."""
    name = type(module).__name__
    if is_layer(module) or isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)):
        return "weight"
    if "Norm" in name:
        return "normalization"
    if "Dropout" in name or "DropPath" in name:
        return "dropout"
    if activation_name(module) is not None:
        return "activation"
    return "block" if any(True for _ in module.children()) else "other"


def weight_of(module: nn.Module) -> Tensor | None:
    """The weight that multiplies the signal in a module; None for a module without one."""
    for key in ("weight", "in_proj_weight", "q_proj_weight", "weight_ih_l0", "weight_ih"):
        value = module._parameters.get(key)
        if value is None and key == "weight" and parametrize.is_parametrized(module, key):
            value = getattr(module, key)
        if isinstance(value, Tensor):
            return value
    return None


@dataclass
class Collected:
    """One pass, measured but not yet on the host.

    Attributes:
        calls: the calls, in the order of execution.
        pending: five measurements for each: activation, gradient, weight, its gradient, bias.
    """

    calls: list[Call]
    pending: list[Pending | None]

    def records(self, *, scale: float = 1.0, weight_scale: float = 1.0) -> list[LayerSignal]:
        """Bring the numbers to the host, with one copy from each device, and make records of them.

        Args:
            scale: a loss scale, by which the gradients of activations are divided.
            weight_scale: the same for the gradients of weights, which may have been unscaled already.
        """
        present = iter(resolve([item for item in self.pending if item is not None]))
        done = [None if item is None else next(present) for item in self.pending]
        records = []
        for order, call in enumerate(self.calls):
            activation, gradient, weight, weight_gradient, bias = done[5 * order : 5 * order + 5]
            tensor = weight_of(call.module)
            fan_in, fan_out = fans(call.module, tensor) if tensor is not None and tensor.dim() >= 2 else (None, None)
            assert activation is not None
            records.append(
                LayerSignal(
                    name=call.name,
                    kind=type(call.module).__name__,
                    call=call.call,
                    order=order,
                    depth=call.depth,
                    role=call.role,
                    shape=call.shape,
                    dtype=str(call.dtype).removeprefix("torch."),
                    activation=activation,
                    gradient=rescale(gradient, 1 / scale),
                    weight=weight,
                    weight_gradient=rescale(weight_gradient, 1 / weight_scale),
                    bias=bias,
                    fan_in=fan_in,
                    fan_out=fan_out,
                    module=call.module,
                )
            )
        return records


class Capture:
    """Hooks on a model that measure one pass at a time, and do nothing while not ``recording``.

    Use as a context manager, or call ``attach`` and ``detach``. Between ``begin`` and ``finish`` each module's call
    becomes a record: the first floating-point tensor of its output that has an axis, and its gradient once a backward
    pass reaches it.
    A container whose output a child made is not recorded again, nor is a module that returned its input; a forward
    that runs inside a backward pass (activation checkpointing) is the same call run again, not a new one.

    Args:
        model: any module; parts that are themselves compiled or scripted are measured from outside.
        observe: told of each output and gradient as it is recorded.
        on_error: given what was raised inside a hook; None lets it rise into the user's forward or backward.
        training_only: for use beside training: stop recording when the model has returned, ignore what runs while
            gradients are disabled, and of weights measure the scale only.
    """

    def __init__(
        self,
        model: nn.Module,
        observe: Observer | None = None,
        *,
        on_error: Callable[[Exception], None] | None = None,
        training_only: bool = False,
    ) -> None:
        self.model = model
        self.recording = False
        self.calls: list[Call] = []
        self._observe = observe
        self._on_error = on_error
        self._training_only = training_only
        self._handles: list[Any] = []
        self._known: dict[nn.Module, tuple[str, Role, Ends | None]] = {}
        self._depth = 0
        self._channel_axis = -1
        self._counts: dict[int, int] = {}
        self._recorded: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __enter__(self) -> Capture:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> None:
        """Put the hooks on."""
        if self._handles:
            return
        for name, module in self.model.named_modules():
            if module not in self._known:
                self._known[module] = (name, role_of(module), flat_ends(module))
            self._handles.append(module.register_forward_hook(self._after_forward))

    def detach(self) -> None:
        """Take every hook off."""
        self.recording = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self) -> None:
        """Forget the last pass and record from here on."""
        self.calls = []
        self._depth, self._channel_axis = 0, -1
        self._counts.clear()
        self._recorded.clear()
        self.recording = True

    def collect(self, gradients: Mapping[int, Tensor] | None = None) -> Collected:
        """Stop recording and measure the weights and their gradients; nothing waits for a device.

        Args:
            gradients: gradients of weights by the ``id`` of the parameter; their ``.grad`` where not given.
        """
        self.recording = False
        self._recorded.clear()
        pending: list[Pending | None] = []
        measured: dict[int, Pending] = {}

        take = measure_scale if self._training_only else measure

        def once(tensor: Tensor | None) -> Pending | None:
            if tensor is None:
                return None
            if id(tensor) not in measured:
                measured[id(tensor)] = take(tensor)
            return measured[id(tensor)]

        for call in self.calls:
            weight, bias = weight_of(call.module), call.module._parameters.get("bias")
            gradient = None
            if weight is not None:
                gradient = weight.grad if weight.is_leaf else None
                gradient = gradients.get(id(weight)) if gradients is not None else gradient
            pending += [call.activation, call.gradient, once(weight), once(gradient), once(bias)]
        return Collected(self.calls, pending)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not self.recording:
            return
        if self._training_only and not torch.is_grad_enabled():
            return
        self._safely(self._take, module, output)
        if self._training_only and module is self.model and not _inside_backward():
            self.recording = False  # the pass is over; what runs before the next one is not part of it

    def _safely(self, action: Callable[..., None], *args: Any) -> None:
        if self._on_error is None:
            action(*args)
            return
        try:
            action(*args)
        except Exception as error:
            self._on_error(error)

    def _take(self, module: nn.Module, output: Any) -> None:
        # A number is no signal: where a model returns its loss beside its scores, the scores are meant.
        tensor = next((item for item in tensors_in(output) if item.dtype.is_floating_point and item.dim()), None)
        if tensor is None:
            return
        if _inside_backward():
            self._hook_recomputed(module, tensor)
            return
        version = 0 if tensor.is_inference() else tensor._version
        seen = self._recorded.get(id(tensor))
        name, role, ends = self._known[module]
        if seen is not None and seen[0]() is tensor and seen[1] == version and role != "weight":
            return
        self._recorded[id(tensor)] = (weakref.ref(tensor), version)
        self._record(module, tensor, name, role, ends)

    def _record(self, module: nn.Module, tensor: Tensor, name: str, role: Role, ends: Ends | None) -> None:
        if role == "weight":
            self._depth += 1
            self._channel_axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
        number = self._counts.get(id(module), 0)
        self._counts[id(module)] = number + 1
        call = Call(
            name=name,
            module=module,
            call=number,
            depth=self._depth,
            role=role,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            channel_axis=self._channel_axis,
            activation=measure(tensor, ends),
        )
        self.calls.append(call)
        if self._observe is not None:
            self._observe(call, tensor.detach(), "forward")
        self._hook(call, tensor)

    def _hook(self, call: Call, tensor: Tensor) -> None:
        if not tensor.requires_grad:
            return
        call.hooked = True

        def read(gradient: Tensor) -> None:
            call.gradient = measure(gradient)
            if self._observe is not None:
                self._observe(call, gradient, "backward")

        tensor.register_hook(lambda gradient: self._safely(read, gradient))

    def _hook_recomputed(self, module: nn.Module, tensor: Tensor) -> None:
        """Checkpointing with re-entry: the graph exists only now, so the gradient can only be hooked now.

        Segments are run again from the last to the first, so it is the last call not yet hooked.
        """
        call = next((call for call in reversed(self.calls) if call.module is module and not call.hooked), None)
        if call is not None:
            self._hook(call, tensor)


def rescale(moments: Moments | None, factor: float) -> Moments | None:
    """The moments of factor · x."""
    if moments is None or factor == 1.0:
        return moments
    return dataclasses.replace(
        moments,
        log10_rms=moments.log10_rms + math.log10(factor),
        rms=moments.rms * factor,
        mean=moments.mean * factor,
        std=moments.std * factor,
        max_abs=moments.max_abs * factor,
    )


def _inside_backward() -> bool:
    """Whether a backward pass is running in this thread: a forward now is a checkpointed segment run again."""
    current = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1
