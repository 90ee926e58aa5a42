"""Rows for what a model calls as functions, beside training: a function mode from the start of its forward to the end.

The mode costs some microseconds at every torch function. So a model whose first full pass had no call that makes a row
is looked at without it from then on, but for the 10th, 100th, 1000th, … full pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from torchnotes.diagnostics.capture import Capture
from torchnotes.diagnostics.function_calls import FunctionCalls, activation_of, floating
from torchnotes.diagnostics.theory_lookup import FunctionOfOne, known_whole
from torchnotes.init.following import NORMALIZING

# Known by name, for beside training no function may be tried out: not each entry by itself, or at random.
_NOT_ELEMENTWISE = NORMALIZING - {"log_sigmoid"} | {"glu", "prelu", "rrelu"}


class FunctionRows(FunctionCalls):
    """Sees the functions that a model calls in its own forward while gradients are enabled, and has them recorded.

    Args:
        model: the model.
        capture: what records the pass.
        on_error: given what was raised in here.
        eager: whether measured passes run uncompiled; else a model with compiled parts is left alone, for they would be
            compiled anew under a mode.

    Attributes:
        entered: how many passes ran under the mode.
    """

    _sees_its_end = False

    def __init__(
        self, model: nn.Module, capture: Capture, on_error: Callable[[Exception], None], *, eager: bool = False
    ) -> None:
        super().__init__(model, capture)
        self._on_error = on_error
        self._eager = eager
        self._signals: dict[int, weakref.ref[Tensor]] = {}
        self._handles: list[Any] = []
        self._end: Any = None  # the handle of the hook at the model's end
        self._on = False
        self._full = True
        self._found = False
        self._passes = 0
        self.entered = 0

    def attach(self, full: bool) -> None:
        """Put the hooks on that enter and leave the mode, where there is something to see.

        Args:
            full: whether the pass to come is measured in full.
        """
        wanted = self._found or (full and _is_power_of_ten(self._passes + 1))
        # The capture puts its hooks on anew where it looks at other modules than before, and its have to come first.
        if wanted and self._handles and full == self._full:
            return
        self._full = full
        self._take_hooks_off()
        if not wanted or (not self._eager and _has_compiled_parts(self._model)):
            self.detach()
            return
        self._as_one.clear()
        self._names = {id(module): name for name, module in self._model.named_modules()}
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            if module is not self._model:
                self._handles.append(module.register_forward_hook(self._after))
        if self._end is None:
            self._end = self._model.register_forward_hook(self._after_model, prepend=True, always_call=True)

    def detach(self) -> None:
        """Leave the mode and take every hook off; inside a pass the last one goes when the model returns."""
        self._leave()
        self._forget()
        self._take_hooks_off()
        if self._end is not None and not self._on:
            self._end.remove()
            self._end = None

    def _take_hooks_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self) -> None:
        """Forget the last pass, and leave the mode that an interrupt may have left on."""
        self._leave()
        self._forget()
        self._function_counts.clear()
        self._weights.begin()

    def settle(self, full: bool) -> None:
        """End a measured pass: whether the next are looked at is known now."""
        self._leave()
        self._forget()
        self._passes += full

    def _enter(self, inputs: Any) -> None:
        self.begin()
        for tensor in floating(inputs):
            self._remember(tensor)
        _push_mode(self)
        self._on = True
        self.entered += 1

    def _leave(self) -> None:
        """Take the mode off the stack, from under others if need be; where it is running itself, its end will."""
        if not self._on or self not in _get_current_function_mode_stack():
            return
        above = []
        while (mode := _pop_mode()) is not self:
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)
        self._on = False

    def _forget(self) -> None:
        self._signals.clear()
        self._open.clear()
        self._opaque = 0
        self._last, self._silenced = None, False

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if module is self._model and self._capture.listens:
            try:
                self._enter([args, kwargs])
            except Exception as error:
                self._failed(error)
        if self._on:
            super()._before(module, args, kwargs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling() and self._on:
            super()._after(module, args, output)

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook of the model, which runs after a forward that raised too; then there is no output."""
        if torch.compiler.is_compiling() or not self._on:
            return
        self._leave()
        self._forget()
        # Not where the forward raised: torch is going through the hooks then, and would stumble.
        if not self._handles and output is not None:
            self.detach()

    def _is_signal(self, tensor: Tensor) -> bool:
        reference = self._signals.get(id(tensor))
        return reference is not None and reference() is tensor

    def _is_whole(self, module: nn.Module) -> bool:
        leaf = not any(True for _ in module.children())
        return known_whole(module) or (leaf and activation_of(type(module).__name__) is not None)

    def _remember(self, tensor: Tensor) -> None:
        self._signals[id(tensor)] = weakref.ref(tensor)

    def _made(self, func: Any, args: Any, kwargs: Any, signals: list[Tensor], outputs: list[Tensor]) -> None:
        name = getattr(func, "__name__", "")
        kind = activation_of(name)
        for output in outputs:
            function = None
            if (
                kind is not None
                and kind not in _NOT_ELEMENTWISE
                and len(signals) == 1
                and output.shape == signals[0].shape
            ):
                function = FunctionOfOne(func, args, kwargs, signals[0])
            self._row_of(name, function, args, kwargs, output)
            self._remember(output)

    def _row_of(
        self, name: str, function: Callable[[Tensor], Tensor] | None, args: Any, kwargs: Any, output: Tensor
    ) -> tuple[str, str, int] | None:
        row = super()._row_of(name, function, args, kwargs, output) if self._capture.listens else None
        self._found = self._found or row is not None
        return row

    def _returned(self, module: nn.Module, whole: bool, signals: list[Tensor], outputs: list[Tensor]) -> None:
        self._remember(outputs[0])

    def _failed(self, error: Exception) -> None:
        self._on_error(error)


def _is_power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"


def _has_compiled_parts(model: nn.Module) -> bool:
    return any(getattr(part, "_compiled_call_impl", None) or hasattr(part, "_orig_mod") for part in model.modules())
