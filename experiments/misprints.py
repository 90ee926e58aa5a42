"""Formulas that the notes misprint, put to numerical differences: which of the two forms is the gradient?"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.console import Claim
from torchnotes import ops
from torchnotes.gradcheck import check_function, gradient_ratio, numerical_gradient

EPS = 1e-5  # where round-off and the formula's own error are both near 1e-10


def misprint_claims(seed: int) -> list[Claim]:
    """Held against differences: tan and tanh, dz·a and dz aᵀ, and the slope of ReLU at its kink."""
    generator = torch.Generator().manual_seed(seed)
    return [_tan(), _outer_product(generator), _kink()]


def _tan() -> Claim:
    z = torch.tensor([-1.2, 0.3, 0.9], dtype=torch.float64)
    ratios = []
    for function in (torch.tanh, torch.tan):
        approx = numerical_gradient(lambda t, f=function: f(t).sum(), z, eps=EPS)  # type: ignore[misc]
        ratios.append(gradient_ratio(approx, 1 - function(z) ** 2))
    tanh, tan = ratios
    return Claim(
        "The slope 1 − a² is that of a = tanh z, and not of the printed a = tan z.",
        tanh < 1e-7 and tan > 1e-3,
        f"The ratio is {tanh:.0e} for tanh and {tan:.1f} for tan.",
    )


def _outer_product(generator: torch.Generator) -> Claim:
    weight, a, dz = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((3, 4), 4, 3))

    def cost(w: Tensor) -> Tensor:
        return ops.linear(a, w) @ dz  # so that its gradient at z is dz

    ratio = gradient_ratio(numerical_gradient(cost, weight, eps=EPS), torch.outer(dz, a))
    try:
        printed = f"has the shape {tuple((dz * a).shape)}"
    except RuntimeError:
        printed = "does not exist: three numbers against four"
    return Claim(
        "For one sample dW is the outer product dz aᵀ, with the shape of W, and not the printed product dz·a.",
        ratio < 1e-7 and printed.startswith("does not exist"),
        f"The ratio of dz aᵀ is {ratio:.0e}; element by element the product {printed}.",
    )


def _kink() -> Claim:
    zero = torch.zeros(1, dtype=torch.float64)
    across = float(numerical_gradient(lambda t: ops.relu(t).sum(), zero, eps=EPS))
    right = torch.autograd.grad(ops.relu(leaf := zero.clone().requires_grad_()).sum(), leaf)[0]
    report = check_function(ops.relu, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    return Claim(
        "At the kink of ReLU a difference is no evidence of a bug: it gives ½, the slope used is 0.",
        across == 0.5 and float(right) == 0 and report.ok,
        f"The difference across the kink is {across:.2f}, the slope {float(right):.0f}; the check calls it "
        f"{report.verdict}.",
    )
