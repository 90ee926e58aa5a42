"""Runs of two optimisers over the same gradients."""

import torch


def small_parameters(dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (4,), (), (2, 3, 2), (0, 3), (70, 5)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    params = [torch.nn.Parameter(tensor.to(device, dtype)) for tensor in tensors]
    params.append(torch.nn.Parameter(tensors[0].to(device, dtype).clone().t()))  # not contiguous
    return params


def set_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for index, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64) * scale
        # the third parameter's gradient comes and goes, so that its count of steps falls behind
        param.grad = None if index == 2 and step % 3 == 1 else grad.to(param)


def run(make, params, steps=12, scale=1.0):
    optimizer = make(params)
    for step in range(steps):
        set_gradients(params, step, scale)
        optimizer.step()
    return optimizer


def assert_same(params, others, **tolerance):
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param.data, other.data, **tolerance)
