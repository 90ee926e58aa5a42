"""Seeing the torch functions that a model calls in its own code, where no hook reaches.

Every call of a torch function is seen as it happens (``TorchFunctionMode``), with the tensors it really had. What runs
inside a module that counts as one step (a layer, an activation, a normalisation) is that module's own; a function
counts where it is given a tensor of the signal: the model's input, or what was made from one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchnotes.diagnostics.capture import tensors_in
from torchnotes.init.following import activation_name

OnActivation = Callable[[str, str, int, Callable[[Tensor], Tensor], Tensor], None]
OnCall = Callable[[str, Sequence[Any], Mapping[str, Any], Tensor, str], "tuple[str, int] | None"]


class FunctionCalls(TorchFunctionMode):
    """A function mode that follows the signal through a pass; what is made of it, its descendants say.

    They say which tensors are of the signal (``_is_signal``), which modules count as one step (``_is_whole``), and take
    what a function made (``_made``) and what a module returned (``_returned``).

    Args:
        model: the model.
        ignoring: asked at each call of a function whether it is somebody's measurement and no part of the model.
        on_activation: told of each activation that is called as a function: what to call it (``blocks.7.relu()``), the
            function's own name, how many calls of that name came before, the function and what it returned.
        on_call: told of each other function that is called, with its name, arguments, output and the path of the module
            it is called in; says what it is called as a layer, and how many such calls came before, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        ignoring: Callable[[], bool] = lambda: False,
        on_activation: OnActivation | None = None,
        on_call: OnCall | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._ignoring = ignoring
        self._on_activation = on_activation
        self._on_call = on_call
        self._opaque = 0  # modules taken whole that are running now
        self._busy = False  # our own arithmetic, in a hook
        self._open: list[tuple[nn.Module, list[Tensor]]] = []
        self._function_counts: dict[str, int] = {}
        self._as_one: dict[int, bool] = {}
        self._names: dict[int, str] = {id(module): name for name, module in model.named_modules()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and take what it made, unless it runs inside a module taken as a whole."""
        kwargs = kwargs or {}
        # Compiled functions have this very line compiled into them.
        if torch.compiler.is_compiling() or self._opaque or self._busy or self._ignoring():
            return func(*args, **kwargs)
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
            called = None if self._on_call is None else self._on_call(name, args, kwargs, output, self._inside)
            return None if called is None else (called[0], name, called[1])
        label = f"{self._inside}.{kind}()".lstrip(".")
        number = self._function_counts.get(label, 0)
        self._function_counts[label] = number + 1
        if self._on_activation is not None:
            self._on_activation(label, kind, number, function, output)
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
