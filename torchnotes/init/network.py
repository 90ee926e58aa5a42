"""Initialise every layer of a network, each by the activation that follows it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torchnotes._checks import check_generator, check_in_range, describe
from torchnotes.init.following import (
    RECTIFIERS,
    SMOOTH,
    Following,
    find_following,
)

Scheme = Literal["auto", "zeros", "small", "lecun", "he", "xavier"]

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class AppliedInit:
    """What was done to one parameter.

    Attributes:
        name: the parameter's path in the model, such as ``"0.weight"``.
        kind: class name of the module that owns it.
        shape: its shape.
        fan_in: inputs summed into one output value; None where the parameter was left alone.
        fan_out: outputs that one input value reaches.
        activation: functional name of the activation that follows; None for none.
        found: how that activation was found, or why the parameter was left alone.
        scheme: ``"he"``, ``"lecun"``, ...; ``"left as it is"``.
        std: standard deviation drawn from; None where the parameter was left alone.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    fan_in: int | None
    fan_out: int | None
    activation: str | None
    found: str
    scheme: str
    std: float | None


@dataclass(frozen=True)
class InitReport:
    """What ``initialize_`` did, parameter by parameter; prints as a table.

    Attributes:
        applied: the weights that were drawn anew, in the order of registration.
        untouched: the parameters left as they were, with the reason.
    """

    applied: tuple[AppliedInit, ...]
    untouched: tuple[AppliedInit, ...]

    def __iter__(self) -> Iterator[AppliedInit]:
        return iter(self.applied)

    def __len__(self) -> int:
        return len(self.applied)

    def __getitem__(self, name: str) -> AppliedInit:
        """The entry of a parameter (``"0.weight"``) or of a layer (``"0"``)."""
        for entry in (*self.applied, *self.untouched):
            if name in (entry.name, entry.name.rpartition(".")[0]):
                return entry
        raise KeyError(name)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="Initialisation", title_justify="left", show_edge=False)
        for heading in ("parameter", "layer", "shape", "fan in", "followed by", "found by", "scheme", "std"):
            numeric = heading in ("fan in", "std")
            table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
        for entry in self.applied:
            table.add_row(
                entry.name,
                entry.kind,
                "×".join(map(str, entry.shape)),
                str(entry.fan_in),
                entry.activation or "nothing",
                entry.found,
                entry.scheme,
                f"{entry.std:.3g}",
            )
        for entry in self.untouched:
            table.add_row(
                entry.name, entry.kind, "×".join(map(str, entry.shape)), "", "", entry.found, entry.scheme, ""
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=140, color_system=None).print(self)
        return out.getvalue().rstrip()


def initialize_(
    model: nn.Module,
    scheme: Scheme = "auto",
    gain: float = 1.0,
    *,
    generator: torch.Generator | None = None,
) -> InitReport:
    """Draw every weight of a network anew, in place, and set every bias of those layers to zero.

    ``"auto"`` chooses by the activation φ that follows each layer:

    * rectifiers (ReLU, leaky ReLU, ...): N(0, 2/((1 + a²) n_in)), a the slope below zero: He's for ReLU;
    * smooth relatives (GELU, SiLU, ELU, SELU, ...): N(0, 1/(n_in E[φ(z)²])), z ~ N(0, 1), the same rule with the mean
      taken by quadrature: a unit signal stays one;
    * tanh, sigmoid and other functions with flat ends, softmax, or no activation: N(0, 1/n_in), the notes' choice.

    The named schemes apply one formula everywhere: ``"zeros"``, ``"small"`` (0.01²), ``"lecun"`` (1/n_in), ``"he"``
    (2/n_in), ``"xavier"`` (2/(n_in + n_out)). n_in counts what one output sums: channels per group × kernel for a
    convolution, divided by the stride for a transposed one.

    Any module that holds a ``weight`` of two or more dimensions is a layer: torch.nn's, torchnotes.nn's and your own,
    linear, convolutional and transposed, and the projections of ``nn.MultiheadAttention``. Normalisation layers,
    embeddings, recurrent layers, parametrised weights and frozen ones (``requires_grad=False``) are left as they
    are, and listed so. A weight that two layers share is drawn once.

    Args:
        model: the network, changed in place.
        scheme: ``"auto"`` or one formula for all.
        gain: multiplies every standard deviation: the notes' tunable multiplier.
        generator: source of random numbers; PyTorch's global one when None.

    Returns:
        What was applied to each parameter and how the activation was found; prints as a table.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown scheme, a gain out of range, a lazy or meta parameter, or no layer to initialise.

    Source: the notes, "weight initialisation of deep networks"; SPEC B7.

    >>> net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10))
    >>> for entry in initialize_(net):
    ...     print(entry.name, entry.scheme, entry.activation)
    0.weight he relu
    2.weight lecun tanh
    4.weight lecun None
    """
    _check(model, scheme, gain)
    names = {id(module): name for name, module in model.named_modules()}
    following = find_following(model, is_layer) if scheme == "auto" else {}
    applied: list[AppliedInit] = []
    untouched: list[AppliedInit] = []
    done: set[int] = set()
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done or (parameter.dim() < 2 and not _is_bias(module, key)):
                continue
            name = f"{names[id(module)]}.{key}".lstrip(".")
            reason = _reason_to_leave(module, key, parameter)
            if reason is not None:
                if parameter.dim() >= 2:
                    untouched.append(_entry(name, module, parameter, reason))
                continue
            done.add(id(parameter))
            check_generator(generator, parameter.device)
            if parameter.dim() < 2:
                with torch.no_grad():
                    parameter.zero_()
                continue
            follows = following.get(module, Following(None, "not asked: one formula for all"))
            if key != "weight" and scheme == "auto":
                follows = Following(None, f"projection of {type(module).__name__}")
            fan_in, fan_out = fans(module, parameter)
            if key == "in_proj_weight":
                fan_out //= 3  # query, key and value are three layers in one tensor
            label, variance = _variance(scheme, follows, fan_in, fan_out)
            std = gain * math.sqrt(variance)
            with torch.no_grad():
                parameter.normal_(0.0, std, generator=generator) if std else parameter.zero_()
            shape, kind = tuple(parameter.shape), type(module).__name__
            applied.append(AppliedInit(name, kind, shape, fan_in, fan_out, follows.name, follows.found, label, std))
    if not applied:
        raise ValueError(
            f"model must hold a weight to initialise, got {type(model).__name__} with "
            f"{len(untouched)} parameters of two or more dimensions, all left as they are"
            f"{': ' + untouched[0].name + ', ' + untouched[0].found if untouched else ''}; "
            "fill tensors of your own with he_normal_ and its relatives."
        )
    return InitReport(tuple(applied), tuple(untouched))


def is_layer(module: nn.Module) -> bool:
    """Whether a module holds a weight matrix or kernel of its own that multiplies a signal."""
    if isinstance(module, (*_EMBEDDINGS, *_RECURRENT)):
        return False
    weight = getattr(module, "weight", None)
    own = "weight" in module._parameters or parametrize.is_parametrized(module, "weight")
    return own and isinstance(weight, Tensor) and weight.dim() >= 2 and not _normalizes(module)


def fans(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a layer's weight: how many terms one output sums, and how many outputs one input reaches.

    A linear or convolutional weight is (n_out, n_in/groups, *kernel). A transposed one is (n_in, n_out/groups,
    *kernel), and of its ∏kernel taps only ∏kernel/∏stride meet in one output value on average; for a strided
    convolution the same holds for the outputs that one input value reaches.
    """
    groups = int(getattr(module, "groups", 1) or 1) if isinstance(module, nn.modules.conv._ConvNd) else 1
    stride = math.prod(module.stride) if isinstance(module, nn.modules.conv._ConvNd) else 1
    kernel = math.prod(weight.shape[2:])
    fan_in: float
    fan_out: float
    if bool(getattr(module, "transposed", False)):
        fan_in, fan_out = weight.shape[0] // groups * kernel / stride, weight.shape[1] * kernel
    else:
        fan_in, fan_out = weight.shape[1] * kernel, weight.shape[0] // groups * kernel / stride
    return max(1, round(fan_in)), max(1, round(fan_out))


def second_moment(name: str) -> float:
    """E[φ(z)²] for z ~ N(0, 1) by the trapezoidal rule, which for this integrand is exact to rounding.

    >>> round(second_moment("relu"), 9), round(second_moment("selu"), 6)
    (0.5, 1.0)
    """
    function = cast("Callable[[Tensor], Tensor]", getattr(nn.functional, name))
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(function(z).square() * density, z))


def _variance(scheme: Scheme, follows: Following, fan_in: int, fan_out: int) -> tuple[str, float]:
    """The scheme's label and the variance of its weights."""
    if scheme == "auto":
        if follows.name in RECTIFIERS:
            slope = follows.slope or 0.0
            return "he" if not slope else f"he, slope {slope:g}", 2 / ((1 + slope**2) * fan_in)
        if follows.name in SMOOTH and follows.name != "glu":
            moment = second_moment(follows.name)
            return f"1/n ÷ E[φ²] = {moment:.3f}", 1 / (moment * fan_in)
        return "lecun", 1 / fan_in
    formulas = {
        "zeros": 0.0,
        "small": 0.01**2,
        "lecun": 1 / fan_in,
        "he": 2 / fan_in,
        "xavier": 2 / (fan_in + fan_out),
    }
    return scheme, formulas[scheme]


def _entry(name: str, module: nn.Module, parameter: Tensor, reason: str) -> AppliedInit:
    return AppliedInit(
        name, type(module).__name__, tuple(parameter.shape), None, None, None, reason, "left as it is", None
    )


def _normalizes(module: nn.Module) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or "Norm" in type(module).__name__


def _is_bias(module: nn.Module, key: str) -> bool:
    return "bias" in key and (is_layer(module) or isinstance(module, nn.MultiheadAttention))


def _reason_to_leave(module: nn.Module, key: str, parameter: nn.Parameter) -> str | None:
    layered = is_layer(module) and key in ("weight", "bias")
    layered = layered or (isinstance(module, nn.MultiheadAttention) and ("proj" in key))
    checks = (
        (isinstance(module, _EMBEDDINGS), "an embedding sums nothing: it has no fan"),
        (isinstance(module, _RECURRENT), "recurrent: its scale over time is another question"),
        (_normalizes(module), "normalisation"),
        (not parameter.requires_grad, "frozen"),
        (parametrize.is_parametrized(module), "parametrised"),
        (not layered, "not the `weight` of a layer"),
    )
    return next((reason for holds, reason in checks if holds), None)


def _check(model: nn.Module, scheme: Scheme, gain: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; for one tensor use he_normal_.")
    if scheme not in get_args(Scheme):
        choices = ", ".join(repr(name) for name in get_args(Scheme))
        raise ValueError(f"scheme must be one of {choices}, got {scheme!r}; 'auto' chooses by the activation.")
    check_in_range(
        gain,
        "gain",
        0.0,
        math.inf,
        high_open=True,
        remedy="it multiplies the standard deviation; 1.0 is the plain formula",
    )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"every parameter must have a shape, got {name} of a lazy module; "
                "run one batch through the model first."
            )
        if parameter.is_meta:
            raise ValueError(
                f"every parameter must have values, got {name} on the meta device; "
                "give the model memory first, with model.to_empty(device='cpu')."
            )
