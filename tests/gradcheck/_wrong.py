"""Wrong backwards, each a plausible slip; with what torch.autograd.gradcheck says of it in slow and in fast mode."""

from dataclasses import dataclass, field

import torch
from torch.autograd import Function


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A wrong op; ``slow`` and ``fast``: whether torch.autograd.gradcheck lets it through in that mode."""

    name: str
    fn: object
    inputs: tuple
    says: str
    slow: bool
    fast: bool
    options: dict = field(default_factory=dict)


def unary(backward, forward=torch.tanh, slope=lambda x: 1 - torch.tanh(x) ** 2):
    """Return tanh with a backward of the caller's choice: backward(grad, slope at x)."""

    class Unary(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, g):
            return backward(g, slope(ctx.saved_tensors[0]))

    return Unary.apply


def stale_state():
    class Stale(Function):
        kept = None

        @staticmethod
        def forward(ctx, x):
            Stale.kept = x.detach().clone()
            return torch.tanh(x)

        @staticmethod
        def backward(ctx, g):
            return g * (1 - torch.tanh(Stale.kept) ** 2)

    return Stale.apply


def contiguous_assumed(g, s):
    flat = torch.as_strided(g, (g.numel(),), (1,), g.storage_offset())
    return flat.view(g.shape) * s


def in_place(g, s):
    return g.mul_(s)


class Product(Function):
    """a · b whose backward treats ``needs_input_grad`` wrongly where only b asks."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        grad_a = g * b if ctx.needs_input_grad[0] else None
        grad_b = g * a if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] else None
        return grad_a, grad_b


class SecondOrder(Function):
    """tanh whose backward holds a constant where it should depend on x: right once, wrong twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0].detach()) ** 2)


class ForwardMode(Function):
    """tanh with a right backward and a wrong jvp."""

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    @staticmethod
    def jvp(ctx, t):
        return t * (1 - torch.tanh(ctx.saved_tensors[0]))


class RowBias(Function):
    """x + b whose bias gradient forgets to sum over the rows."""

    @staticmethod
    def forward(ctx, x, b):
        return x + b

    @staticmethod
    def backward(ctx, g):
        return g, g[0]


class MeanSquare(Function):
    """mean(x²) with the gradient of a sum."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**2).mean()

    @staticmethod
    def backward(ctx, g):
        return g * 2 * ctx.saved_tensors[0]


def linear(fault):
    class Linear(Function):
        @staticmethod
        def forward(ctx, x, w, b):
            ctx.save_for_backward(x, w)
            return x @ w.T + b

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return fault(g @ w, g.T @ x, g.sum(0))

    return Linear.apply


class Regularised(Function):
    """Σ x² / m + λ Σ w² whose backward leaves the penalty out."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return ((x @ w) ** 2).mean() + 0.01 * (w**2).sum()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        r = x @ w
        return g * 2 * torch.outer(r, w) / len(r), g * 2 * x.T @ r / len(r)


class Float32Inside(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].float()
        return (g.float() * (1 - torch.tanh(x) ** 2)).double()


class FreshMask(Function):
    """Dropout whose backward draws its mask anew."""

    @staticmethod
    def forward(ctx, x):
        return x * (torch.rand_like(x) < 0.5) / 0.5

    @staticmethod
    def backward(ctx, g):
        return g * (torch.rand_like(g) < 0.5) / 0.5


X = randn(4, 3)
LINEAR = (randn(5, 3), randn(3, 3, seed=1), randn(3, seed=2))

CASES = [
    Case("absolute value", unary(lambda g, s: g.abs() * s), (X,), "linear in the cotangent", True, True),
    Case("relu of the gradient", unary(lambda g, s: torch.relu(g) * s), (X,), "linear in the cotangent", True, True),
    Case("clipped", unary(lambda g, s: g.clamp(-1, 1) * s), (X,), "linear in the cotangent", True, True),
    Case("squared", unary(lambda g, s: g * g * s), (X,), "linear in the cotangent", True, False),
    Case("times its norm", unary(lambda g, s: g * g.norm() * s), (X,), "linear in the cotangent", True, True),
    Case("modified in place", unary(in_place), (X,), "modifies grad_output in place", True, False),
    Case("stale class state", stale_state(), (X,), "two uses interleaved", True, True),
    Case("contiguous assumed", unary(contiguous_assumed), (X,), "contiguous memory is assumed", True, True),
    Case("needs_input_grad", Product.apply, (X, randn(4, 3, seed=1)), "needs_input_grad", True, True),
    Case("relative error 5e-4", unary(lambda g, s: 1.0005 * g * s), (X,), "1.0005 × the right gradient", True, True),
    Case("second order", SecondOrder.apply, (X,), "second order", True, True),
    Case("forward mode", ForwardMode.apply, (X,), "forward mode", True, True),
    Case("broadcast forgotten", RowBias.apply, (X, randn(3, seed=1)), "input[1]", False, False),
    Case("sum for mean", MeanSquare.apply, (X,), "12 × too large", False, False),
    Case("bias ×4", linear(lambda x, w, b: (x, w, 4 * b)), LINEAR, "input[2]: 4 × too large", False, False),
    Case("transposed", linear(lambda x, w, b: (x, w.T, b)), LINEAR, "input[1]: transposed", False, False),
    Case("penalty left out", Regularised.apply, (randn(5, 4), randn(4, seed=1)), "penalty missing", False, False),
    Case("sign", unary(lambda g, s: -g * s), (X,), "sign: the negative", False, False),
    Case("float32 inside", Float32Inside.apply, (X,), "float32 arithmetic inside a float64 path", True, True),
    Case("mask drawn anew", FreshMask.apply, (X,), "a mask drawn anew", False, False),
]
