"""Calibration: set the scale of every layer from one batch of data, in one pass."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torchnotes._checks import check_generator, check_in_range, describe
from torchnotes.init.following import find_following
from torchnotes.init.network import is_layer

Start = Literal["as is", "orthogonal"]


@dataclass(frozen=True)
class CalibratedLayer:
    """What was done to one layer.

    Attributes:
        name: the layer's path in the model.
        kind: its class name.
        before: rms of its output without the bias, given calibrated layers before it; NaN where it was not called.
        factor: by what its weight was multiplied; None where it was left.
        after: that rms now.
        note: why it was left; empty where it was not.
    """

    name: str
    kind: str
    before: float
    factor: float | None
    after: float
    note: str = ""


@dataclass(frozen=True)
class CalibrationReport:
    """What ``calibrate_`` did, layer by layer, in the order of execution; prints as a table.

    Attributes:
        layers: one entry for each layer.
        target: the rms aimed at.
    """

    layers: tuple[CalibratedLayer, ...]
    target: float

    def __iter__(self) -> Iterator[CalibratedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> CalibratedLayer:
        """The entry of a layer, by its path."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=f"Calibration to rms {self.target:g}", title_justify="left", show_edge=False)
        table.add_column("layer", overflow="fold")
        table.add_column("kind")
        for heading in ("rms before", "weight multiplied by", "rms after"):
            table.add_column(heading, justify="right")
        table.add_column("left as it is because", overflow="fold")
        for layer in self.layers:
            numbers = (
                "–" if v is None or math.isnan(v) else f"{v:.4g}" for v in (layer.before, layer.factor, layer.after)
            )
            table.add_row(layer.name or "(model)", layer.kind, *numbers, layer.note)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=120, color_system=None, highlight=False).print(self)
        return out.getvalue().rstrip()


def calibrate_(
    model: nn.Module,
    batch: Any,
    *,
    target: float | None = None,
    start: Start = "as is",
    generator: torch.Generator | None = None,
) -> CalibrationReport:
    """Scale the weight of every layer, in place, until its output on a batch has the rms asked for.

    In the order of execution each layer's output without its bias, z − b = W x, is measured and W multiplied by
    target / rms(W x). That is linear, so one pass does all layers exactly, each with its predecessors already
    calibrated: activations, dropout, normalisation and skip connections between them are taken as they are, from the
    data, without a formula. Directions in the weights are kept; biases are not touched.

    It is the data-driven part of LSUV; ``start="orthogonal"`` does the other one, too: every weight is first
    replaced by a random matrix of orthonormal rows or columns. (LSUV repeats until the variance is within a tolerance,
    since it changes one layer at a time from the outside; here the corrected output is what the next layer sees.)

    For ReLU and its relatives any target will do. A net of more than ten layers of tanh (or of another function that is
    bounded and passes the origin: hardtanh, softsign) wants a smaller one, such as 0.3: at rms 1 the weights that keep
    the signal let the gradient grow by about 1.08 per layer.

    The model runs in the mode it is in (in training mode dropout's scale is calibrated with it). The mode, buffers such
    as running statistics, gradients and the random state are what they were afterwards, also if it raised; so are
    the weights if it raised.

    Args:
        model: any module; its weights are changed in place.
        batch: a tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        target: rms of every layer's output; None for 0.3 where more than ten layers are followed by such a bounded
            function, and 1 elsewhere. The report says which.
        start: ``"as is"`` keeps the directions of the weights; ``"orthogonal"`` draws orthogonal ones first.
        generator: source of random numbers for ``"orthogonal"``; PyTorch's global one, put back afterwards, when None.

    Returns:
        What was done to each layer; prints as a table. A layer called more than once is calibrated at its first call;
        frozen and parametrised ones, and those the pass never reached, are left and listed so.

    Raises:
        TypeError: ``model`` is not a module, or ``batch`` holds no tensor.
        ValueError: the batch is not finite, a layer's output on it is zero or not finite, the target is not positive,
            an unknown start, a parameter without values, or no layer to calibrate.

    Source: Mishkin and Matas 2016, "All you need is a good init"; the notes' scale to be kept, SPEC C5.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> report = calibrate_(net, torch.randn(256, 64))
    >>> [round(layer.after, 4) for layer in report]
    [1.0, 1.0]
    """
    layers = _check(model, batch, target, start)
    goal = _default_target(model) if target is None else target
    done: dict[str, CalibratedLayer] = {}
    with _restored(model) as commit:
        if start == "orthogonal":
            _draw_orthogonal(layers, generator)
        handles = [_attach(name, layer, goal, done) for name, layer in layers.items() if not _reason_left(layer)]
        try:
            with torch.no_grad():
                _call(getattr(model, "_orig_mod", model), batch)
        finally:
            for handle in handles:
                handle.remove()
        if not any(entry.factor is not None for entry in done.values()):
            raise ValueError(
                f"model must run a layer whose weight can be scaled, got {type(model).__name__}, which ran none; "
                "call layers as modules (self.fc(x)) and unfreeze those to calibrate."
            )
        commit()
    for name, layer in layers.items():
        if name not in done:
            note = _reason_left(layer) or "never called as a module in this pass"
            done[name] = CalibratedLayer(name, type(layer).__name__, math.nan, None, math.nan, note)
    return CalibrationReport(tuple(done.values()), goal)


def _default_target(model: nn.Module) -> float:
    """1, but 0.3 for a deep net of bounded functions, which squash a signal of rms 1."""
    bounded = [f for f in find_following(model, is_layer).values() if f.name in ("tanh", "hardtanh", "softsign")]
    return 0.3 if len(bounded) > 10 else 1.0


def _attach(name: str, layer: nn.Module, target: float, done: dict[str, CalibratedLayer]) -> Any:
    if getattr(layer, "activation", None) is not None and isinstance(layer.weight, Tensor) and layer.weight.dim() == 2:
        return layer.register_forward_pre_hook(_hook_before(name, target, done))
    return layer.register_forward_hook(_hook(name, target, done))


def _hook(name: str, target: float, done: dict[str, CalibratedLayer]) -> Any:
    def rescale(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if name in done or not isinstance(output, Tensor):
            return None
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        assert weight is not None
        offset = 0.0 if bias is None else _along_channels(bias, output, module)
        linear = output - offset
        done[name] = _scale(name, module, weight, linear, target)
        # rms(W x) scales with W: what comes next sees the layer as it now is.
        return linear.mul_(target / done[name].before).add_(offset)

    return rescale


def _hook_before(name: str, target: float, done: dict[str, CalibratedLayer]) -> Any:
    """For a layer that ends in an activation of its own: its output is not linear in W, so W x is taken apart."""

    def rescale(module: nn.Module, args: tuple[Any, ...]) -> None:
        weight = module._parameters["weight"]
        assert weight is not None
        if name not in done and args and isinstance(args[0], Tensor):
            done[name] = _scale(name, module, weight, nn.functional.linear(args[0], weight), target)

    return rescale


def _scale(name: str, module: nn.Module, weight: Tensor, linear: Tensor, target: float) -> CalibratedLayer:
    rms = _rms(linear)
    if not math.isfinite(rms) or rms == 0:
        raise ValueError(
            f"every layer must pass a finite signal on, got rms {rms} at {name or 'the model'} on this batch; "
            "draw its weights anew with initialize_(model), or pass start='orthogonal'."
        )
    weight.mul_(target / rms)
    return CalibratedLayer(name, type(module).__name__, rms, target / rms, _rms(linear * (target / rms)))


def _rms(x: Tensor) -> float:
    scale = x.abs().max()
    return float(scale) * math.sqrt(float((x / scale).double().square().mean())) if scale > 0 else float(scale)


def _along_channels(bias: Tensor, output: Tensor, module: nn.Module) -> Tensor:
    if isinstance(module, nn.modules.conv._ConvNd):
        return bias.reshape(-1, *[1] * len(module.kernel_size))
    return bias


def _reason_left(layer: nn.Module) -> str:
    if parametrize.is_parametrized(layer, "weight"):
        return "parametrised: its scale is set by the parametrisation"
    weight = layer._parameters.get("weight")
    if weight is None or not weight.requires_grad:
        return "frozen"
    return ""


def _draw_orthogonal(layers: Mapping[str, nn.Module], generator: torch.Generator | None) -> None:
    drawn: set[int] = set()
    for layer in layers.values():
        weight = layer._parameters.get("weight")
        if weight is None or _reason_left(layer) or id(weight) in drawn:
            continue
        drawn.add(id(weight))
        check_generator(generator, weight.device)
        nn.init.orthogonal_(weight, generator=generator)


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[Any]:
    """Buffers and random state put back; the weights, too, unless the work was committed."""
    weights = [(p, p.detach().clone()) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    own = [g for m in model.modules() if isinstance(g := getattr(m, "generator", None), torch.Generator)]
    states = [(generator, generator.get_state()) for generator in own]
    committed = False

    def commit() -> None:
        nonlocal committed
        committed = True

    try:
        with torch.random.fork_rng(devices=devices):
            yield commit
    finally:
        for generator, state in states:
            generator.set_state(state)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            if not committed:
                for parameter, value in weights:
                    parameter.copy_(value)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)


def _tensors(batch: Any) -> list[Tensor]:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


def _check(model: nn.Module, batch: Any, target: float | None, start: Start) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; pass the network itself.")
    if target is not None:
        check_in_range(
            target, "target", 0.0, math.inf, low_open=True, high_open=True, remedy="it is the rms of every output"
        )
    if start not in ("as is", "orthogonal"):
        raise ValueError(
            f"start must be 'as is' or 'orthogonal', got {start!r}; for a formula call initialize_ before."
        )
    tensors = _tensors(batch)
    if not tensors:
        raise TypeError(f"batch must hold a tensor, got {describe(batch)}; pass what the model takes.")
    for tensor in tensors:
        if tensor.dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"batch must be finite, got {int((~tensor.isfinite()).sum())} non-finite values; clean it first."
            )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"every parameter must have values, got {name} without; run one batch first (lazy modules) or give "
                "the model memory with model.to_empty(device='cpu') and initialise it (meta device)."
            )
    return {name: module for name, module in model.named_modules() if is_layer(module)}
