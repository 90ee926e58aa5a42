"""What the files of cases share: which device they run on, and that a kernel really ran."""

import contextlib
import os

import torch

from torchnotes.ops.kernels import mode

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A few roundings of the dtype: the kernels compute in float32 (float64 in float64) and round once.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def generator(seed=0):
    return torch.Generator(DEVICE).manual_seed(seed)


def randn(*shape, dtype=torch.float32, seed=0, requires_grad=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(DEVICE, dtype).requires_grad_(requires_grad)


@contextlib.contextmanager
def counted(monkeypatch, function_class):
    """Mode "always", with a list that grows by one with each call of the kernel's Function."""
    calls = []
    original = function_class.__dict__.get("call", function_class.call)

    def call(*args):
        calls.append(args)
        return original(*args)

    with monkeypatch.context() as patch, mode("always"):
        patch.setattr(function_class, "call", call)
        yield calls
