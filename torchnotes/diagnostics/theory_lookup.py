"""Which step of the theory a module or a function call is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes.diagnostics import theory_steps as steps
from torchnotes.diagnostics.theory_quadrature import as_elementwise, is_elementwise
from torchnotes.diagnostics.theory_steps import Step

_REARRANGE = frozenset(
    "view reshape flatten permute transpose swapaxes movedim contiguous squeeze unsqueeze t T mT chunk split unbind "
    "unflatten expand clone to float double half bfloat16 type __getitem__ narrow select roll".split()
)
_KEEP_UNITS = frozenset("contiguous clone to float double half bfloat16 type".split())
_ADD = frozenset("add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __isub__".split())
_MULTIPLY = frozenset("mul mul_ multiply __mul__ __rmul__ __imul__".split())
_DIVIDE = frozenset("div div_ divide true_divide __truediv__ __itruediv__".split())
_DROPOUT = frozenset("dropout dropout_ dropout1d dropout2d dropout3d".split())


def keep_probability(module: nn.Module) -> float | None:
    """Share that a dropout module keeps; None where it says neither ``p`` nor ``keep_prob``."""
    keep = getattr(module, "keep_prob", None)
    if isinstance(keep, float):
        return keep
    p = getattr(module, "p", None)
    return 1 - p if isinstance(p, (int, float)) else None


def steps_of_module(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    """The steps of a module that is taken as a whole, one after the other; None for one to look inside of.

    Args:
        name: its path.
        module: the module.
        x: its input, for the sizes.
        y: its output.
    """
    for look in (_source, _convolution, _normalisation, _dropout, _dense, _rearranged, _activation):
        found = look(name, module, x, y)
        if found is not None:
            return found
    return None


def taken_whole(module: nn.Module) -> bool:
    """Whether a module is one step (or a few) of the theory, rather than something to look inside of."""
    if known_whole(module):
        return True
    return not any(True for _ in module.children()) and as_elementwise(module) is not None


def known_whole(module: nn.Module) -> bool:
    """The same as far as it can be known without trying the module out, which beside training nobody may."""
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)):
        return True
    if any(True for _ in module.children()):
        return False
    kind = type(module).__name__
    known = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.Identity, nn.Flatten, nn.Unflatten))
    return known or "Norm" in kind or "Dropout" in kind or type(module).__module__.startswith("torchnotes.nn")


def _source(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    return [steps.Source(name)] if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None


def _dropout(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    if "Dropout" not in type(module).__name__:
        return None
    keep = keep_probability(module) if module.training else 1.0
    if keep is None or keep <= 0 or "Alpha" in type(module).__name__:
        return [steps.Opaque(name, f"{type(module).__name__} {name} is not a plain dropout")]
    return [steps.Dropout(name, keep)]


def _rearranged(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    if isinstance(module, (nn.Identity, nn.Flatten, nn.Unflatten)):
        return [steps.Rearranged(name, keeps_units=x.shape == y.shape)]
    return None


def _activation(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    function = as_elementwise(module) if x.shape == y.shape else None
    return None if function is None else [steps.Activation(name, function)]


def _dense(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        return None
    found: list[Step] = [
        steps.weighted(name, weight, bias, taps_in=float(weight.shape[1]), taps_out=float(weight.shape[0]))
    ]
    if type(module).__name__ != "Dense":
        return found
    # One module that is linear map, activation and dropout.
    activation = getattr(module, "activation", None)
    if activation == "leaky_relu":
        activation = nn.LeakyReLU(float(vars(module)["negative_slope"]))
    elif isinstance(activation, str):
        activation = getattr(torch.nn.functional, activation, None)
    if activation is not None:
        if not is_elementwise(activation):
            return [*found, steps.Opaque(name, f"the activation of {name} is not elementwise")]
        found.append(steps.Activation(name, activation))
    keep = keep_probability(module)
    if keep is not None and module.training and keep < 1:
        found.append(steps.Dropout(name, keep))
    return found


def _convolution(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    if not isinstance(module, nn.modules.conv._ConvNd):
        return None
    if module.transposed or not isinstance(module.padding, tuple) or module.padding_mode != "zeros":
        return [steps.Opaque(name, f"{type(module).__name__} {name}: transposed or specially padded")]
    met = [_taps(module, axis, x.shape[axis + 2], y.shape[axis + 2]) for axis in range(x.dim() - 2)]
    # Averages over positions: a tap that falls on the padding sums nothing and sends nothing back.
    taps_in = module.in_channels / module.groups * math.prod(m / n for m, n in zip(met, y.shape[2:], strict=True))
    taps_out = module.out_channels / module.groups * math.prod(m / n for m, n in zip(met, x.shape[2:], strict=True))
    return [steps.weighted(name, module.weight, module.bias, taps_in=taps_in, taps_out=taps_out)]


def _taps(module: nn.modules.conv._ConvNd, axis: int, size: int, out: int) -> int:
    """Pairs (output position, tap) that fall on the input, along one axis."""
    start = torch.arange(out).unsqueeze(1) * module.stride[axis] - int(module.padding[axis])
    positions = start + torch.arange(module.kernel_size[axis]) * module.dilation[axis]
    return int(((positions >= 0) & (positions < size)).sum())


def _affine_moments(weight: Tensor | None, bias: Tensor | None) -> tuple[float, float, float]:
    gamma = 1.0 if weight is None else float(weight.detach().double().square().mean())
    if bias is None:
        return gamma, 0.0, 0.0
    beta = bias.detach().double()
    return gamma, float(beta.mean()), float(beta.square().mean())


def _normalisation(name: str, module: nn.Module, x: Tensor, y: Tensor) -> list[Step] | None:
    kind = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or kind in ("BatchNorm1d", "BatchNorm2d"):
        return [_batch_norm(name, module)]
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or "RMSNorm" in kind:
        return [_sample_norm(name, module, x)]
    if "Norm" in kind:
        return [steps.Opaque(name, f"{kind} {name} is not among the normalisations the theory covers")]
    return None


def _batch_norm(name: str, module: nn.Module) -> Step:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    eps = float(getattr(module, "eps", 1e-5))
    if module.training or mean is None or var is None:
        return steps.BatchNorm(name, *_affine_moments(weight, bias), eps)
    scale = (var.double() + eps).rsqrt() * (1.0 if weight is None else weight.detach().double())
    return steps.affine(name, scale, (0.0 if bias is None else bias.detach().double()) - scale * mean.double())


def _sample_norm(name: str, module: nn.Module, x: Tensor) -> Step:
    if isinstance(module, nn.GroupNorm):
        units = x[0].numel() // module.num_groups
    else:
        shape = getattr(module, "normalized_shape", None) or (x.shape[-1],)
        units = math.prod(shape)
    eps = getattr(module, "eps", None)
    moments = _affine_moments(getattr(module, "weight", None), getattr(module, "bias", None))
    centred = "RMS" not in type(module).__name__
    return steps.SampleNorm(name, units, centred, *moments, 1e-6 if eps is None else float(eps))


class FunctionOfOne:
    """A function's call with the signal taken out: z ↦ f(…, z, …). It keeps the other arguments, and no activation.

    Args:
        function: what was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        signal: the one among them that z takes the place of.
    """

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], signal: Tensor
    ) -> None:
        self.function = function
        self._places = [i for i, argument in enumerate(args) if argument is signal]
        self._names = [key for key, argument in kwargs.items() if argument is signal]
        self._args = [None if argument is signal else argument for argument in args]
        self._kwargs = {key: None if argument is signal else argument for key, argument in kwargs.items()}

    def __call__(self, z: Tensor) -> Tensor:
        """Call the function with z in the signal's place."""
        args, kwargs = list(self._args), dict(self._kwargs)
        for place in self._places:
            args[place] = z
        for key in self._names:
            kwargs[key] = z
        result = self.function(*args, **kwargs)
        assert isinstance(result, Tensor)
        return result

    def __repr__(self) -> str:
        given = [repr(a) for i, a in enumerate(self._args) if i not in self._places]
        given += [f"{key}={a!r}" for key, a in self._kwargs.items() if key not in self._names]
        return f"{getattr(self.function, '__name__', 'function')}({', '.join(['z', *given])})"


def step_of_call(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    signals: Sequence[Tensor],
    output: Tensor,
) -> Step:
    """The step of a function call.

    Args:
        function: what was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        signals: those among the arguments that carry the signal, in order.
        output: what came out.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if len(signals) == 1:
        found = _of_one(name, args, kwargs, signals[0], output)
    else:
        found = _of_several(name, args, kwargs, signals, output)
    if found is not None:
        return found
    if len(signals) == 1 and output.shape == signals[0].shape:
        elementwise = FunctionOfOne(function, args, kwargs, signals[0])
        if is_elementwise(elementwise):
            return steps.Activation(name, elementwise)
    return steps.Opaque(name, f"the theory does not cover `{name}`")


def _of_one(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor, y: Tensor) -> Step | None:
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a is not x]
    number = next((a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)), None)
    if name in _REARRANGE:
        return steps.Rearranged(name, keeps_units=name in _KEEP_UNITS)
    if name == "linear" or (name in ("matmul", "__matmul__", "mm") and others and others[0].dim() == 2):
        weight = others[0] if name == "linear" else others[0].T
        bias = others[1] if len(others) > 1 else None
        return steps.weighted(name, weight, bias, taps_in=float(weight.shape[1]), taps_out=float(weight.shape[0]))
    if name in _DROPOUT:
        p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        training = kwargs.get("training", args[2] if len(args) > 2 else True)
        return steps.Dropout(name, 1 - p) if training and p < 1 else steps.Rearranged(name, keeps_units=not training)
    if name == "layer_norm":
        arguments = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | dict(kwargs)
        moments = _affine_moments(arguments.get("weight"), arguments.get("bias"))
        units = math.prod(arguments["normalized_shape"])
        return steps.SampleNorm(name, units, True, *moments, float(arguments.get("eps", 1e-5)))
    if name in _ADD or name in _MULTIPLY or name in _DIVIDE:
        return _with_constant(name, others, number, x, y)
    return None


def _with_constant(name: str, others: list[Tensor], number: float | None, x: Tensor, y: Tensor) -> Step | None:
    if x.shape != y.shape:
        return None
    constant: Tensor | float | None = others[0] if others else number
    if constant is None:
        return steps.Sum(name, (2,)) if name in _ADD and not others else None
    if isinstance(constant, Tensor):
        constant = constant.detach().double().cpu()
    if name in _DIVIDE:
        return steps.affine(name, 1 / constant, 0.0)
    if name in _MULTIPLY:
        return steps.affine(name, constant, 0.0)
    return steps.affine(name, 1.0, -constant if "sub" in name else constant)


def _of_several(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], signals: Sequence[Tensor], y: Tensor
) -> Step | None:
    if name in ("cat", "concat", "concatenate"):
        sizes = [signal.numel() for signal in signals]
        return steps.Joined(name, tuple(size / sum(sizes) for size in sizes))
    if len(signals) != 2 or any(signal.shape != y.shape for signal in signals) or kwargs.get("alpha", 1) != 1:
        return None
    if name in _ADD:
        return steps.Sum(name, (1, -1) if "sub" in name else (1, 1))
    return steps.Product(name) if name in _MULTIPLY else None
