"""The base class of every op: all plumbing is here, so that an op's file is only maths and its derivation.

How to add an op
----------------
1. ``ops/square.py``: one subclass of `Op` with the arithmetic, one public function with the checks::

       class SquareFunction(Op):
           @staticmethod
           def forward(x):                      # tensors and constants in, tensors out; no ctx
               return x * x

           @staticmethod
           def setup_context(ctx, inputs, output):
               save(ctx, inputs[0])             # only inputs and outputs may be saved

           @staticmethod
           def backward(ctx, grad_y):           # x̄ = ȳ · 2x
               (x,) = ctx.saved_tensors
               return grad_y * 2 * x            # ordinary differentiable arithmetic

           jvp = backward                       # elementwise: ẏ = ẋ · 2x is the same arithmetic

       def square(x):
           check_floating(x, "x")
           return SquareFunction.call(x)        # ``call``, never ``apply``

2. Re-export it in ``ops/__init__.py``; its Module goes to ``nn/square.py``, its tests to ``tests/ops/test_square.py``.

The rules, and what each buys:

- ``forward`` takes no ctx and ``setup_context`` is defined: without that no `torch.func` transform works. So nothing
  but inputs and outputs can be saved; what else backward needs (a mask, a statistic) is computed before ``call`` and
  passed in, or returned as a further output that the public function drops.
- Tensors are saved with `save`, never as ``ctx.y = y``: an output kept that way is a reference cycle, freed only when
  the cyclic collector happens to run. Numbers and booleans may be attributes of ctx.
- ``backward`` is arithmetic on ``ctx.saved_tensors`` that autograd can differentiate again, and returns one gradient
  for each argument of ``forward``, None for constants. It may skip what ``ctx.needs_input_grad`` says nobody wants. It
  never writes into ``grad_y`` or a saved tensor: both belong to others. A tensor that it made itself it may overwrite
  where `may_overwrite` says so.
- ``jvp`` is the forward-mode rule: tangents in, tangents out, None for arguments without one. An elementwise op has a
  diagonal Jacobian, so there ``jvp = backward``. A linear op's ``jvp`` is its own forward on the tangent.
- ``autocast`` names the op's policy under `torch.autocast`, see `Op`.

What a subclass gets for it: no autograd at all when no gradient is wanted, half of `torch.autograd.Function`'s
overhead when one is, second derivatives, forward mode, `torch.vmap`, `torch.func.grad`/`hessian`/`jacfwd`,
`torch.compile(fullgraph=True)`, `torch.export` and autocast.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep inputs or outputs for ``backward`` and for ``jvp``; both read them from ``ctx.saved_tensors``."""
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` for what ``forward`` returns, but nothing at all where the dtype is right already.

    The compiler of torch 2.11 takes a cast that changes nothing for an output without a gradient, and returns zeros.
    """
    return x if x.dtype == dtype else x.to(dtype)


def may_overwrite(incoming: Tensor) -> bool:
    """Whether a forward or backward may compute in the memory of the temporaries it has just made.

    True where nobody differentiates or batches the arithmetic: not under ``create_graph=True``, ``is_grads_batched``,
    a `torch.func` transform, forward mode or the compiler. Allocation costs more than arithmetic on a CPU, so large
    tensors gain.

    Args:
        incoming: the tensor that came from outside, such as ``grad_y``.
    """
    return not torch.is_grad_enabled() and plain_eager() and not _is_legacy_batched(incoming)


def plain_eager() -> bool:
    """Whether nothing but ordinary evaluation and backward is going on: no transform, no forward mode, no compiler."""
    return not (is_compiling() or not _FAST_PATH or _transforms_active() or forward_ad._current_level >= 0)


_FULL_PRECISION = (torch.float32, torch.float64)
_NUMBERS = {
    (number, dtype): torch.full((), number, dtype=dtype, device="cpu")
    for number in (-1.0, 0.0, 1.0)
    for dtype in _FULL_PRECISION
}


def number_beside(number: float, y: Tensor) -> Tensor:
    """The number −1, 0 or 1 for arithmetic with ``y``, as a tensor made once. Not to be written to.

    PyTorch makes a tensor of each Python number that it adds to another or multiplies by it, which takes longer than
    the arithmetic where there is one element.
    """
    made = _NUMBERS.get((number, y.dtype)) if _takes_made_numbers(y) else None
    return y.new_full((), number) if made is None else made


def factor_beside(number: float, y: Tensor) -> Tensor | float:
    """A number for products with ``y``: as a tensor made once where that gives the same, else the number itself.

    In half precision it does not: a Python number is rounded after the product, a tensor of its dtype before.
    """
    return _factor(number, y.dtype) if y.dtype in _FULL_PRECISION and _takes_made_numbers(y) else number


def _takes_made_numbers(y: Tensor) -> bool:
    return not is_compiling() and type(y) is Tensor and y.is_cpu and not _transforms_active()


@functools.lru_cache(maxsize=256)
def _factor(number: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in that mode could not be saved for a backward
        return torch.full((), number, dtype=dtype, device="cpu")


class Op(torch.autograd.Function):
    """A hand-derived op. Subclass it with forward, setup_context, backward and jvp; run it with `call`.

    Attributes:
        autocast: what happens to floating-point arguments where `torch.autocast` is on, as for PyTorch's own ops:
            ``"low"`` casts them to the autocast dtype (matrix products), ``"float32"`` raises half precision to
            float32 (exponentials, logarithms and long sums), None leaves them as they are (elementwise ops).
            float64 is left alone. The casts are outside the op, so gradients come back in the arguments' own dtype.
    """

    generate_vmap_rule = True
    autocast: ClassVar[Literal["low", "float32"] | None] = None
    _eager: ClassVar[type[Op]]
    _fast_apply: ClassVar[Any]  # C++'s apply; Function.apply, above it, binds the signature anew on each call

    def __init_subclass__(cls) -> None:
        """Move ``jvp`` to a variant for eager use: the compiler refuses any Function that has one."""
        super().__init_subclass__()
        if "_eager" in vars(cls):  # this is the variant
            return
        cls._eager = cls
        if "jvp" in vars(cls):
            names = {"jvp": vars(cls)["jvp"], "_eager": None, "__module__": cls.__module__}
            del cls.jvp
            cls._eager = cast("type[Op]", type(cls.__name__, (cls,), names))
        cls._fast_apply = getattr(super(torch.autograd.Function, cls._eager), "apply", None)
        if "_backward_cls" in vars(cls._eager) and "backward" in vars(cls):
            node: Any = cls._eager._backward_cls
            node.apply = vars(cls)["backward"].__func__  # as a method, for the node is the ctx

    @classmethod
    def call(cls, *args: Any) -> Any:
        """Apply the op by the cheapest way that gives every derivative now being asked for.

        Args:
            *args: the arguments of ``forward``, by position, a tensor first.

        Returns:
            What ``forward`` returns.
        """
        if cls.autocast is not None and torch.is_autocast_enabled("cpu" if args[0].is_cpu else args[0].device.type):
            args = _autocast(cls.autocast, args)
        if is_compiling():
            return cls.apply(*args)
        if not _FAST_PATH or _transforms_active():
            return cls._eager.apply(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return cls._fast_apply(*args)
        return cls.forward(*args) if forward_ad._current_level < 0 else cls._fast_apply(*args)


def _autocast(policy: Literal["low", "float32"], args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = torch.float32 if policy == "float32" else torch.get_autocast_dtype(args[0].device.type)
    return tuple(
        arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64 else arg
        for arg in args
    )


def _missing(*_: Any) -> bool:
    return False


_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", _missing)
# Under is_grads_batched=True, which is older than torch.func and not counted as one of its transforms.
_is_legacy_batched: Any = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", _missing)


class _Probe(torch.autograd.Function):
    """y = 2x, run once at import to see whether the private call path still does what it did."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        return grad_y * ctx.saved_tensors[0]


def _fast_path_works() -> bool:
    """Whether the private names that `Op.call` relies on are there and mean what they did.

    The node is run by hand: a backward through the engine would start its device threads, and a process that has
    them can no longer be forked.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.full((), 3.0, device="cpu", requires_grad=True)
            y = super(torch.autograd.Function, _Probe).apply(x)
            grad_x = y.grad_fn.apply(torch.full((), 5.0, device="cpu"))
            return (
                type(y.grad_fn) is _Probe._backward_cls
                and y.item() == 6.0
                and grad_x.item() == 30.0
                and _missing not in (_transforms_active, _is_legacy_batched)
                and isinstance(forward_ad._current_level, int)
            )
    except Exception:  # whatever has changed: the public path needs none of it
        return False


_FAST_PATH = _fast_path_works()
