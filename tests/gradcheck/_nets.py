"""Small nets, data and deliberately wrong layers shared by the gradient checker's tests."""

import itertools

import torch
from torch import nn


def data(m=12, n=6, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (m,), generator=generator)


def seeded(model, seed=0, scale=0.5):
    """Give every parameter seeded normal values, biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def net(activation=nn.Tanh, sizes=(6, 5, 4, 3), dtype=torch.float64, seed=0):
    layers = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b), activation()] if k < len(sizes) - 2 else [nn.Linear(a, b)]
    return seeded(nn.Sequential(*layers).to(dtype), seed)


class FaultyLinearFunction(torch.autograd.Function):
    """x Wᵀ + b whose parameter gradients pass through a fault of the caller's choice."""

    @staticmethod
    def forward(ctx, x, weight, bias, fault):
        ctx.save_for_backward(x, weight)
        ctx.fault = fault
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return *ctx.fault(g @ weight, g.T @ x, g.sum(0), weight), None


class FaultyLinear(nn.Linear):
    def __init__(self, n_in, n_out, fault):
        super().__init__(n_in, n_out, dtype=torch.float64)
        self.fault = fault

    def forward(self, x):
        return FaultyLinearFunction.apply(x, self.weight, self.bias, self.fault)


def faulty_net(fault, sizes=(6, 4, 4, 3), seed=0):
    """A tanh net whose middle layer is faulty; parameters of the fault are named 2.weight and 2.bias."""
    a, b, c, d = sizes
    layers = [nn.Linear(a, b), nn.Tanh(), FaultyLinear(b, c, fault), nn.Tanh(), nn.Linear(c, d)]
    return seeded(nn.Sequential(*layers).double(), seed)
