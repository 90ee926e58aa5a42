"""Hooks on every module of a model: what comes out of it, and the gradient that arrives there.

The gradient is read by a hook on the output tensor, set inside the module's forward hook. A module's own backward
hooks would refuse in-place activations; a tensor's hook belongs to the value before it was overwritten.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchnotes.diagnostics._moments import flat_ends, flat_ends_of_function
from torchnotes.diagnostics.captured import NO_WEIGHT, Call, Collected, FunctionCall, Pass, Site, Weights
from torchnotes.diagnostics.measuring import Exact, Measurer
from torchnotes.diagnostics.records import Direction, Role
from torchnotes.diagnostics.sampling import Entries
from torchnotes.init.following import activation_name
from torchnotes.init.network import is_layer

Observer = Callable[[Call, Tensor, Direction], None]
"""Told of each output, and of each gradient, as it is recorded: for statistics per unit."""


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


class Capture:
    """Hooks on a model that measure one pass at a time, and do nothing while not ``recording``.

    Use as a context manager, or call ``attach`` and ``detach``. Between ``begin`` and ``finish`` each module's call
    becomes a record: the first floating-point tensor of its output that has an axis, and its gradient once a backward
    pass reaches it.
    A container whose output a child made is not recorded again, nor is a module that returned its input; a forward
    that runs inside a backward pass (activation checkpointing) is the same call run again, not a new one.

    Args:
        model: any module; parts that are themselves compiled or scripted are measured from outside.
        observe: told of each output of the modules whose role is in ``observed``, and each gradient that arrives at
            those whose role is in ``observed_gradients``, as it is recorded.
        on_error: given what was raised inside a hook; None lets it rise into the user's forward or backward.
        training_only: for use beside training: stop recording when the model has returned, and ignore what runs while
            gradients are disabled.

    Attributes:
        measurer: how the tensors of the pass are measured; exactly, unless it is set before ``begin``.
        observed, observed_gradients: the roles of which ``observe`` is told.
        busy: whether a hook of this capture is running.
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
        self._observe = observe
        self._on_error = on_error
        self._training_only = training_only
        self.measurer: Measurer = Exact()
        self._pass = Pass(self.measurer)
        self.observed: Container[Role] = ()
        self.observed_gradients: Container[Role] = ()
        self.busy = False
        self._handles: list[Any] = []
        self._roles: Container[Role] | None = None
        self._sites: dict[nn.Module, Site] = {}
        self._depth = 0
        self._channel_axis = -1
        self._recorded: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __enter__(self) -> Capture:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self, roles: Container[Role] | None = None) -> None:
        """Put the hooks on.

        Args:
            roles: record modules of these roles only; None for all.
        """
        if self._handles:
            if roles == self._roles:
                return
            self.detach()
        self._roles = roles
        for name, module in self.model.named_modules():
            if module not in self._sites:
                self._sites[module] = Site(name, module, role_of(module), flat_ends(module))
            if roles is None or module is self.model or self._sites[module].role in roles:
                hook = functools.partial(self._after_forward, self._sites[module])
                self._handles.append(module.register_forward_hook(hook))

    def detach(self) -> None:
        """Take every hook off."""
        self.recording = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self) -> None:
        """Forget the last pass and record from here on."""
        self._pass = Pass(self.measurer)
        self._depth, self._channel_axis = 0, -1
        for site in self._sites.values():
            site.calls = 0
        self._recorded.clear()
        self.recording = True

    @property
    def calls(self) -> list[Call]:
        """The calls of the pass so far."""
        return self._pass.calls

    def collect(self, gradients: Mapping[int, Tensor] | None = None, entries: Sequence[Entries] = ()) -> Collected:
        """Stop recording and measure the weights and their gradients; nothing waits for a device.

        Args:
            gradients: gradients of weights by the ``id`` of the parameter; their ``.grad`` where not given.
            entries: samples of weights and gradients that may be taken on the way.
        """
        self.recording = False
        self._recorded.clear()
        places: dict[int, int] = {}  # by id; the tensors live while this runs
        different: list[Tensor] = []

        def place(tensor: Tensor | None) -> int | None:
            if tensor is None:
                return None
            found = places.setdefault(id(tensor), len(different))
            if found == len(different):
                different.append(tensor)
            return found

        weights: list[Weights] = []
        for call in self.calls:
            module = call.site.module
            if not module._parameters and "parametrizations" not in module._modules:
                weights.append(NO_WEIGHT)
                continue
            weight, gradient = weight_of(module), None
            if weight is not None:
                gradient = (
                    gradients.get(id(weight)) if gradients is not None else weight.grad if weight.is_leaf else None
                )
            own = (place(weight), place(gradient), place(module._parameters.get("bias")))
            weights.append((own, (None, None) if weight is None else call.site.fans_of(weight)))
        return Collected(self._pass, self._pass.measurer.parameters(different, entries), weights)

    def function_called(
        self, name: str, kind: str, number: int, function: Callable[[Tensor], Tensor], output: Tensor
    ) -> None:
        """Record an activation that is a function call; hooks see modules only, so whoever sees it has to say so.

        Args:
            name: what its record is called.
            kind: its name in `torch.nn.functional`.
            number: 0 for the first call of this name in the pass.
            function: it, with all its arguments but the signal.
            output: what it returned.
        """
        if self.listens:
            module = FunctionCall(function)
            self.take_called(Site(name, module, "activation", flat_ends_of_function(kind), number, kind=kind), output)

    @property
    def listens(self) -> bool:
        """Whether what is called now is part of the pass that is recorded."""
        if not self.recording or _inside_backward():
            return False
        return not self._training_only or torch.is_grad_enabled()

    def take_called(self, site: Site, output: Tensor) -> None:
        """Record what a function returned.

        Args:
            site: the function in the shape of a module, with the number of calls before.
            output: what it returned.
        """
        if self._roles is not None and site.role not in self._roles:
            return
        self.busy = True
        try:
            self._take(site, output)
        finally:
            self.busy = False

    def _after_forward(self, site: Site, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.recording or _is_compiling():
            return
        if self._training_only and not torch.is_grad_enabled():
            return
        self.busy = True
        try:
            if self._roles is None or site.role in self._roles:
                self._take(site, output)
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        finally:
            self.busy = False
        if self._training_only and module is self.model and not _inside_backward():
            self.recording = False  # the pass is over; what runs before the next one is not part of it

    def _take(self, site: Site, output: Any) -> None:
        """Measure an output, unless it was measured before.

        One function, few calls: between the kernels of a training step the interpreter is cold, and each call of a
        Python function here costs some microseconds.
        """
        # A number is no signal: where a model returns its loss beside its scores, the scores are meant.
        quick = type(output) is Tensor and output.dtype is torch.float32 and output.dim()
        tensor: Tensor | None = output if quick else next(filter(_is_signal, tensors_in(output)), None)
        if tensor is None:
            return
        if _graph_task() != -1:
            self._hook_recomputed(site, tensor)
            return
        taken = self._pass
        in_graph = tensor.requires_grad
        version = tensor._version if in_graph or not tensor.is_inference() else 0
        role = site.role
        hooks = tensor._backward_hooks
        if role != "weight":
            if self._was_measured(tensor, hooks, version):
                return
            axis = self._channel_axis if role == "activation" else None
        else:
            self._depth += 1
            self._channel_axis, axis = site.channel_axis, None
        number = site.calls
        site.calls = number + 1
        index = len(taken.calls)
        taken.outputs.append(taken.measurer.output(tensor, site.ends, axis))
        call = site.first
        if (
            number
            or call is None
            or call.depth != self._depth
            or call.shape != tensor.shape
            or call.dtype is not tensor.dtype
            or call.channel_axis != self._channel_axis
        ):
            call = Call(site, number, self._depth, tensor.shape, tensor.dtype, self._channel_axis)
            if not number:
                site.first = call
        taken.calls.append(call)
        taken.versions.append(version)
        taken.gradients.append(None)
        if self._observe is not None and role in self.observed:
            self._observe(call, tensor, "forward")
        if not in_graph:
            taken.unhooked.append(index)
        elif hooks is None and (node := tensor.grad_fn) is not None:
            # ``tensor.register_hook``, step for step, but for the handle to take it off, which is most of its cost.
            ours: OrderedDict[Any, Any] = OrderedDict()
            ours[_OURS] = functools.partial(self._read, taken, index)
            tensor._backward_hooks = ours
            node._register_hook_dict(tensor)
            return
        else:
            tensor.register_hook(functools.partial(self._read, taken, index))
        self._recorded[id(tensor)] = (weakref.ref(tensor), version)

    def _was_measured(self, tensor: Tensor, hooks: Any, version: int) -> bool:
        """Whether it has been recorded in this pass, and not been written to since."""
        ours = None if hooks is None else hooks.get(_OURS)
        if ours is not None and ours.args[0] is self._pass and self._pass.versions[ours.args[1]] == version:
            return True
        seen = self._recorded.get(id(tensor))
        return seen is not None and seen[0]() is tensor and seen[1] == version

    def _read(self, taken: Pass, index: int, gradient: Tensor) -> None:
        self.busy = True
        try:
            taken.gradients[index] = taken.measurer.gradient(gradient)
            if self._observe is not None and taken.calls[index].site.role in self.observed_gradients:
                self._observe(taken.calls[index], gradient, "backward")
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        finally:
            self.busy = False

    def _hook_recomputed(self, site: Site, tensor: Tensor) -> None:
        """Checkpointing with re-entry: the graph exists only now, so the gradient can only be hooked now.

        Segments are run again from the last to the first, so it is the last call not yet hooked.
        """
        taken = self._pass
        index = next((index for index in reversed(taken.unhooked) if taken.calls[index].site is site), None)
        if index is not None and tensor.requires_grad:
            taken.unhooked.remove(index)
            tensor.register_hook(functools.partial(self._read, taken, index))


def _is_signal(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dim() > 0


_is_compiling = torch.compiler.is_compiling
_OURS = object()  # the keys of other hooks, set later, are numbers
_graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def _inside_backward() -> bool:
    """Whether a backward pass is running in this thread: a forward now is a checkpointed segment run again."""
    return _graph_task() != -1
