"""Which elementwise function follows each layer: read from the layer, the traced graph or the registration order."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

# Names as the functions are called in torch.nn.functional; a class name is brought to the same form.
RECTIFIERS = frozenset({"relu", "relu6", "leaky_relu", "rrelu", "prelu", "threshold"})
SMOOTH = frozenset({"gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "hardswish", "logsigmoid", "glu"})
SATURATING = frozenset(
    {"tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign", "tanhshrink", "softshrink", "hardshrink"}
)
NORMALIZING = frozenset({"softmax", "log_softmax", "softmin", "softmax2d", "log_sigmoid"})
ACTIVATIONS = RECTIFIERS | SMOOTH | SATURATING | NORMALIZING
ATTRIBUTES = ("activation", "activation_fn", "act", "act_fn", "act_layer", "nonlinearity", "non_linearity")

# What a signal passes through on its way from a layer to its activation.
_PASSED = re.compile(
    r"dropout|norm|pool|flatten|view|reshape|permute|transpose|contiguous|squeeze|identity|getitem|^i?add|^i?sub|"
    r"^mul$|^to$|^float$|^half$|^type|chunk|split|unbind|^pad|upsample|interpolate|pixel_?shuffle|zero_?pad|clone|"
    r"checkpoint|rearrange|drop_?path|stochastic_?depth|droppath|layerscale|layer_scale|residual",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Following:
    """The activation after a layer, and how it was found.

    Attributes:
        name: its functional name (``"relu"``); None where nothing elementwise follows.
        slope: the negative slope of a leaky ReLU, else None.
        found: how, in words.
    """

    name: str | None
    found: str
    slope: float | None = None


def activation_name(value: object) -> str | None:
    """The functional name of an activation given as a name, a function, a module or a module class; None if not one."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, nn.Module):
        text = type(value).__name__
    elif callable(value):
        text = getattr(value, "__name__", type(value).__name__)
    else:
        return None
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text.removesuffix("_").removesuffix("Function")).lower()
    for name in (plain, plain.replace("_", ""), {"swish": "silu", "re_lu": "relu"}.get(plain, "")):
        for known in ACTIVATIONS:
            if name == known or name == known.replace("_", ""):
                return known
    if re.search(r"gelu", plain):
        return "gelu"
    return {"swish": "silu", "si_lu": "silu"}.get(plain)


def _slope(value: object, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None) -> float | None:
    if activation_name(value) == "prelu" and isinstance(value, nn.PReLU):
        return float(value.weight.detach().mean()) if not value.weight.is_meta else 0.25
    if activation_name(value) not in ("leaky_relu", "rrelu"):
        return None
    if isinstance(value, nn.RReLU):
        return (value.lower + value.upper) / 2
    given = getattr(value, "negative_slope", None)
    given = (keywords or {}).get("negative_slope", arguments[0] if arguments else given)
    return float(given) if isinstance(given, (int, float)) else 0.01


def own_activation(layer: nn.Module) -> Following | None:
    """The activation that a layer applies itself, held in an attribute such as ``activation``; None without one."""
    for attribute in ATTRIBUTES:
        value = getattr(layer, attribute, None)
        name = activation_name(value)
        if name is not None:
            slope = getattr(layer, "negative_slope", None)
            slope = float(slope) if isinstance(slope, float) else _slope(value)
            return Following(name, f"attribute `{attribute}` of the layer", slope)
        if value is None and attribute in vars(layer):
            return Following(None, f"attribute `{attribute}` of the layer is None")
    return None


def find_following(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> dict[nn.Module, Following]:
    """The activation after every weight layer of a model.

    Asked in this order: the layer itself (an attribute such as ``activation``); the graph that ``torch.fx`` traces
    from ``forward``, of the whole model or else of the largest parts of it that can be traced, which sees functional
    calls and the true order; and at last the order in which the modules were registered. Tracing runs ``forward``
    with stand-ins on a structural copy of the model that shares its parameters: the model itself is not run.

    Args:
        model: any module.
        is_layer: tells a weight layer from other modules.

    Returns:
        One entry for each weight layer.
    """
    found: dict[nn.Module, Following] = {}
    _from_graph(model, is_layer, found)
    for layer, following in _from_registration(model, is_layer):
        found.setdefault(layer, following)
    for layer in model.modules():
        if is_layer(layer) and (own := own_activation(layer)) is not None:
            found[layer] = own
        if isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            name = activation_name(layer.activation)
            found[layer.linear1] = Following(name, f"attribute `activation` of {type(layer).__name__}")
            found[layer.linear2] = Following(None, f"{type(layer).__name__} adds its output to the residual stream")
        if isinstance(layer, nn.MultiheadAttention):
            found[layer.out_proj] = Following(None, "output of MultiheadAttention")
    return found


class _Tracer(fx.Tracer):
    def __init__(self, is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._is_layer = is_layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = not any(True for _ in m.children())
        return plain or self._is_layer(m) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> tuple[fx.Graph, nn.Module] | None:
    """The graph of a structural copy of the model, and the copy; None where fx cannot follow its code."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        twin = copy.deepcopy(model, shared)
        devices = list({t.device.index for t in twin.parameters() if t.is_cuda})
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            return _Tracer(is_layer).trace(twin), twin
    except Exception:
        # forward is anybody's code, run here with stand-ins: whatever it raises means only that it cannot be traced.
        return None


def _from_graph(model: nn.Module, is_layer: Callable[[nn.Module], bool], found: dict[nn.Module, Following]) -> None:
    if not any(True for _ in model.children()) or type(model).forward is nn.Module.forward:
        traced = None
    else:
        traced = _trace(model, is_layer)
    if traced is None:
        for child in model.children():
            _from_graph(child, is_layer, found)
        return
    graph, twin = traced
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        if is_layer(module):
            found.setdefault(module, _walk(node, twin, is_layer))
        else:
            _from_graph(module, is_layer, found)


def _walk(start: fx.Node, twin: nn.Module, is_layer: Callable[[nn.Module], bool]) -> Following:
    """Breadth first through what only passes the signal on, to the first activation."""
    queue, seen = list(start.users), set(start.users)
    end = "output of the network"
    while queue:
        node = queue.pop(0)
        value: object
        if node.op == "call_module":
            value = twin.get_submodule(str(node.target))
            if is_layer(value):
                end = "another weight layer"
                continue
        else:
            value = node.target
        name = activation_name(value) if node.op != "output" else None
        if name is not None:
            how = "module" if node.op == "call_module" else "function"
            return Following(
                name, f"{how} call in the traced graph", _slope(value, tuple(node.args[1:]), dict(node.kwargs))
            )
        label = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
        if node.op != "output" and _PASSED.search(str(label)):
            fresh = [user for user in node.users if user not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        elif node.op != "output":
            end = f"`{label}`"
    return Following(None, f"{end} in the traced graph")


def _from_registration(
    model: nn.Module, is_layer: Callable[[nn.Module], bool]
) -> Iterator[tuple[nn.Module, Following]]:
    ordered = [m for m in model.modules() if is_layer(m) or not any(True for _ in m.children())]
    for index, layer in enumerate(ordered):
        if not is_layer(layer):
            continue
        following = Following(None, "no activation after it in the order of registration")
        for later in ordered[index + 1 :]:
            if is_layer(later):
                break
            if (name := activation_name(later)) is not None:
                following = Following(name, "order of registration", _slope(later))
                break
        yield layer, following
