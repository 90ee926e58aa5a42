"""Seeing the torch functions that a model calls in its own code, where no hook reaches.

Every call of a torch function is seen as it happens (``TorchFunctionMode``), with the tensors it really had. What runs
inside a module that counts as one step (a layer, an activation, a normalisation) is that module's own; a function
counts where it is given a tensor of the signal: the model's input, or what was made from one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from torchnotes.diagnostics.capture import Capture, tensors_in
from torchnotes.diagnostics.function_attention import is_attention, opened
from torchnotes.diagnostics.function_weights import FunctionWeights
from torchnotes.init.following import activation_name


class FunctionCalls(TorchFunctionMode):
    """A function mode that follows the signal through a pass; what is made of it, its descendants say.

    They say which tensors are of the signal (``_is_signal``), which modules count as one step (``_is_whole``), and take
    what a function made (``_made``) and what a module returned (``_returned``).

    Args:
        model: the model.
        capture: what records the pass. An activation that is called as a function is recorded as ``blocks.7.relu()``,
            a weight that is used in one under the parameter's name (:mod:`torchnotes.diagnostics.function_weights`).
    """

    _sees_its_end = True  # has a hook that runs last when the model returns

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        super().__init__()
        self._model = model
        self._capture = capture
        self._weights = FunctionWeights(model, capture)
        self._opaque = 0  # modules taken whole that are running now
        self._busy = False  # our own arithmetic, in a hook
        self._attention: nn.MultiheadAttention | None = None  # the one that runs step by step
        self._projected = False  # whether its first projection has its row
        self._silenced = False  # whether the capture is to leave out what the module returns
        self._last: tuple[Any, Any] | None = None  # the arguments of its last one, whose row is made at its end
        self._open: list[tuple[nn.Module, list[Tensor]]] = []
        self._function_counts: dict[str, int] = {}
        self._as_one: dict[int, bool] = {}
        self._names: dict[int, str] = {id(module): name for name, module in model.named_modules()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and take what it made, unless it runs inside a module taken as a whole."""
        kwargs = kwargs or {}
        # Compiled functions have this very line compiled into them.
        if torch.compiler.is_compiling() or self._busy or self._capture.busy:
            return func(*args, **kwargs)
        if self._opaque:
            return self._call_inside(func, args, kwargs)
        signals: list[Tensor] = []
        before: list[int] = []
        try:
            signals = [tensor for tensor in floating([args, kwargs]) if self._is_signal(tensor)]
            before = [_version(signal) for signal in signals]
        except Exception as error:
            self._failed(error)
        result = func(*args, **kwargs)
        if not signals or not isinstance(result, (Tensor, tuple, list)):
            return result
        try:
            untouched = {id(s) for s, version in zip(signals, before, strict=True) if version == _version(s)}
            outputs = [tensor for tensor in floating(result) if id(tensor) not in untouched]  # others: handed through
            self._made(func, args, kwargs, signals, outputs)
        except Exception as error:
            self._failed(error)
        return result

    def _call_inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function inside a module taken as a whole: an attention step by step, so that its weights have rows.

        Without gradients the module is left alone: a segment that runs again in the backward pass (checkpointing with
        re-entry) is known again by its modules.
        """
        module = self._open[-1][0] if self._open else None
        seen = self._sees_its_end or module is not self._model
        if self._attention is None and seen and is_attention(func, module) and torch.is_grad_enabled():
            assert isinstance(module, nn.MultiheadAttention)
            self._attention, self._projected, self._last = module, False, None
            _push_mode(self)
            try:
                return opened(func)(*args, **kwargs)
            finally:
                _pop_mode()
                self._attention = None
                # What the module returns is the output of its last projection: one row for both.
                self._silenced = self._capture.recording and self._projected and self._last is not None
                self._capture.recording = self._capture.recording and not self._silenced
        result = func(*args, **kwargs)
        if self._attention is not None and func is F.linear:
            try:
                if args[1] is self._attention.out_proj.weight:
                    self._last = args, kwargs
                else:
                    self._projected |= self._row_of("linear", None, args, kwargs, result) is not None
            except Exception as error:
                self._failed(error)
        return result

    def _end_attention(self, output: Tensor) -> None:
        last, silenced = self._last, self._silenced
        self._last, self._silenced = None, False
        if silenced and last is not None:
            self._capture.recording = True
            self._row_of("linear", None, *last, output)

    def _is_signal(self, tensor: Tensor) -> bool:
        raise NotImplementedError

    def _is_whole(self, module: nn.Module) -> bool:
        raise NotImplementedError

    def _made(self, func: Any, args: Any, kwargs: Any, signals: list[Tensor], outputs: list[Tensor]) -> None:
        raise NotImplementedError

    def _returned(self, module: nn.Module, whole: bool, signals: list[Tensor], outputs: list[Tensor]) -> None:
        raise NotImplementedError

    def _failed(self, error: Exception) -> None:
        raise error

    def _row_of(
        self, name: str, function: Callable[[Tensor], Tensor] | None, args: Any, kwargs: Any, output: Tensor
    ) -> tuple[str, str, int] | None:
        """Have a call recorded, if it makes a row: what that is called, its kind, and how many came before.

        Args:
            name: the function's name.
            function: it, as a function of the signal; None where it is not elementwise.
            args: its positional arguments.
            kwargs: its keyword arguments.
            output: what it returned.
        """
        kind = None if function is None else activation_of(name)
        if kind is None or function is None:
            called = self._weights(name, args, kwargs, output, self._inside)
            return None if called is None else (called[0], name, called[1])
        label = f"{self._inside}.{kind}()".lstrip(".")
        number = self._function_counts.get(label, 0)
        self._function_counts[label] = number + 1
        self._capture.function_called(label, kind, number, function, output)
        return label, kind, number

    @property
    def _inside(self) -> str:
        """Path of the module whose forward is running."""
        return self._name(self._open[-1][0]) if self._open else ""

    def _name(self, module: nn.Module) -> str:
        return self._names[id(module)]

    def _whole(self, module: nn.Module) -> bool:
        if id(module) not in self._as_one:
            self._as_one[id(module)] = self._is_whole(module)
        return self._as_one[id(module)]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pre-hook of every module."""
        self._busy = True
        try:
            self._open.append((module, list(floating([args, kwargs]))))
            self._opaque += self._whole(module)
        except Exception as error:
            self._failed(error)
        finally:
            self._busy = False

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook of every module."""
        self._busy = True
        try:
            while self._open and self._open[-1][0] is not module:  # left behind by a forward that raised and was caught
                self._opaque -= self._whole(self._open.pop()[0])
            signals = self._open.pop()[1] if self._open else []
            whole = self._whole(module)
            self._opaque -= whole
            outputs = list(floating(output))
            if isinstance(module, nn.MultiheadAttention) and not self._opaque:
                self._end_attention(outputs[0])
            if outputs and not self._opaque:
                self._returned(module, whole, signals, outputs)
        except Exception as error:
            self._failed(error)
        finally:
            self._busy = False


@functools.lru_cache(maxsize=4096)
def activation_of(name: str) -> str | None:
    """Which activation a function of this name is, as in ``torch.nn.functional``; None where it is none."""
    return activation_name(name)


def floating(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in a nested structure, in order."""
    return (tensor for tensor in tensors_in(value) if tensor.dtype.is_floating_point)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; of those made in inference mode nobody counts."""
    return -1 if tensor.is_inference() else tensor._version
