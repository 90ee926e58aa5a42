"""What a check may disturb, and how it is put back: random states, buffers, modes, parameters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Dropout = Literal["frozen", "off"]


class RandomStates:
    """The state of every generator in reach, taken once and replayed before each evaluation.

    Covered: PyTorch's default generators on CPU and on every CUDA device, the generators passed in, those stored on
    a module, and Python's and NumPy's global ones. A function that draws its dropout mask from any of them draws the
    same mask every time.
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        unique = {id(g): g for g in generators}
        self._generators = list(unique.values())
        self._saved = self._read()
        self._used: list[bool] | None = None

    def _read(self) -> list[Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        states: list[Any] = [torch.get_rng_state(), cuda, random.getstate(), _numpy_state()]
        return states + [g.get_state() for g in self._generators]

    def _write(self, which: Sequence[bool]) -> None:
        for k, wanted in enumerate(which):
            if not wanted:
                continue
            state = self._saved[k]
            if k == 0:
                torch.set_rng_state(state)
            elif k == 1:
                for device, one in enumerate(state):
                    torch.cuda.set_rng_state(one, device)
            elif k == 2:
                random.setstate(state)
            elif k == 3:
                _set_numpy_state(state)
            else:
                self._generators[k - 4].set_state(state)

    def changed(self) -> list[bool]:
        """Which generators have moved since the states were taken."""
        return [not _same(a, b) for a, b in zip(self._saved, self._read(), strict=True)]

    def learn(self) -> bool:
        """Note which generators the evaluation just made has used, so that replay touches only those."""
        moved = self.changed()
        self._used = moved if self._used is None else [a or b for a, b in zip(self._used, moved, strict=True)]
        return any(moved)

    def replay(self) -> None:
        """Set the generators back to where they were."""
        self._write(self._used if self._used is not None else [True] * len(self._saved))

    def restore(self) -> None:
        """Set every generator back, whether or not it was seen to be used."""
        self._write(self.changed())


def evaluated(compute: Callable[[], Any]) -> Any:
    """The value of a forward pass; with a graph where it differentiates on its way, though nobody asked for one.

    A network whose cost holds a derivative of its output (an equation to be satisfied, a score, a gradient penalty)
    calls `torch.autograd.grad` within the forward, which fails under ``no_grad``.
    """
    try:
        return compute()
    except RuntimeError as error:
        if torch.is_grad_enabled() or "require grad" not in str(error):
            raise
    with torch.enable_grad():
        value = compute()
    return tree_map_only(Tensor, Tensor.detach, value)


def _numpy_state() -> Any:
    import numpy as np

    return np.random.get_state()  # noqa: NPY002 - the global state is exactly what may be in use


def _set_numpy_state(state: Any) -> None:
    import numpy as np

    np.random.set_state(state)  # noqa: NPY002


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple) and a and isinstance(a[-1], int):
        return bool(a == b)  # Python's own generator: 625 numbers
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool((a == b).all()) if hasattr(a, "all") else bool(a == b)


def module_generators(module: nn.Module) -> list[torch.Generator]:
    """The generators kept as attributes of a module or of one inside it."""
    return [v for m in module.modules() for v in vars(m).values() if isinstance(v, torch.Generator)]


@contextmanager
def preserved(module: nn.Module, random_states: RandomStates) -> Iterator[None]:
    """Leave a module as found: values of parameters and buffers, modes, gradients, generators.

    What is restored is restored in ``finally``, so an exception or Ctrl-C in the middle changes nothing either.
    """
    tensors = [*module.parameters(), *module.buffers()]
    values = [t.detach().clone() for t in tensors]
    slots = [(m, dict(m._parameters), dict(m._buffers)) for m in module.modules()]
    modes = [(m, m.training) for m in module.modules()]
    grads = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    try:
        yield
    finally:
        for m, parameters, buffers in slots:
            m._parameters.clear()
            m._parameters.update(parameters)
            m._buffers.clear()
            m._buffers.update(buffers)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                if not _identical(tensor, value):
                    tensor.copy_(value)
        for m, mode in modes:
            m.training = mode
        for p, grad, requires_grad in grads:
            p.grad = grad
            p.requires_grad_(requires_grad)
        random_states.restore()


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach(), b)


@contextmanager
def dropout_mode(module: nn.Module, mode: Dropout) -> Iterator[None]:
    """Switch dropout to keep everything for the length of the block, or leave it on, to be frozen by replay.

    Switched off are: modules named after dropout, by their own training flag; ``keep_prob`` attributes below 1; and
    the ``dropout`` numbers of PyTorch's attention and recurrent layers.
    """
    if mode not in ("frozen", "off"):
        raise ValueError(
            f"dropout must be 'frozen' or 'off', got {mode!r}; 'frozen' holds every mask fixed, 'off' keeps all units."
        )
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        if mode == "off":
            for m in module.modules():
                for attribute, value in _dropout_settings(m):
                    undo.append((m, attribute, getattr(m, attribute)))
                    setattr(m, attribute, value)
        yield
    finally:
        for m, attribute, value in reversed(undo):
            with suppress(AttributeError):
                setattr(m, attribute, value)


@contextmanager
def padding_rows(model: nn.Module) -> Iterator[list[str]]:
    """Let embeddings have their true gradient for the length of the block; yields a note for each that did not.

    ``padding_idx`` withholds a row's gradient on purpose, though J depends on the row wherever the padding word occurs;
    ``scale_grad_by_freq`` divides it by how often a word occurs. Neither changes anything forward, so the rest of the
    gradient is checked as it is.
    """
    embeddings = [(name or "the model", m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    held = [(name, m, m.padding_idx) for name, m in embeddings if m.padding_idx is not None]
    scaled = [(name, m) for name, m in embeddings if m.scale_grad_by_freq]
    try:
        for _, m, _ in held:
            m.padding_idx = None
        for _, m in scaled:
            m.scale_grad_by_freq = False
        yield [
            f"{name}: padding_idx={row} withholds the gradient of that row on purpose; "
            "it was checked as if it were not withheld"
            for name, _, row in held
        ] + [
            f"{name}: scale_grad_by_freq divides the gradient of a row by how often its word occurs; it was checked "
            "as if it did not"
            for name, _ in scaled
        ]
    finally:
        for _, m, row in held:
            m.padding_idx = row
        for _, m in scaled:
            m.scale_grad_by_freq = True


def _dropout_settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if "dropout" in type(module).__name__.lower():
        yield "training", False
    keep = vars(module).get("keep_prob")
    if isinstance(keep, float) and keep < 1.0:
        yield "keep_prob", 1.0
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout:
        yield "dropout", 0.0
