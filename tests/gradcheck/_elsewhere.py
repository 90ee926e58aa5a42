"""A device that is not the CPU, on any machine: tensors that say they are elsewhere, and refuse to be mixed.

A tensor on the device wraps one on the CPU, which does its arithmetic. As on a GPU, an operation on tensors of both
raises, but for numbers (0-d), indices and copies; what reads a value back is counted. Its name is "meta", for which
autograd needs no thread of its own.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = "meta"
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index"}  # which take indices on the CPU everywhere


class There(torch.Tensor):
    """A tensor elsewhere."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, device=ELSEWHERE, **layout)

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"There({self.here})"

    def tolist(self):
        Device.reads += 1
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """In force, new tensors can be made elsewhere."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """One operation, on the CPU, with the device's rules."""
    name = func.overloadpacket.__name__
    tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    there, here = ([a for a in tensors if isinstance(a, There) == far] for far in (True, False))
    if there and any(a.dim() for a in here) and name not in {"_to_copy", "copy_"} | INDEXING:
        shapes = [[tuple(a.shape) for a in some] for some in (there, here)]
        raise RuntimeError(f"{name}: tensors on two devices, of shapes {shapes[0]} there and {shapes[1]} on the CPU")
    Device.reads += name == "_local_scalar_dense"
    result_there = bool(there)
    if kwargs.get("device") is not None:
        result_there = torch.device(kwargs["device"]).type == ELSEWHERE
        kwargs = {**kwargs, "device": "cpu"}
    if name == "copy_":
        result_there = isinstance(args[0], There)
    near_args, near_kwargs = pytree.tree_map(lambda v: v.here if isinstance(v, There) else v, (args, kwargs))
    out = func(*near_args, **near_kwargs)
    if func._schema.is_mutable and isinstance(out, torch.Tensor):
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        return kwargs[written[0]] if written[0] in kwargs else args[0]
    return pytree.tree_map(lambda v: There(v) if isinstance(v, torch.Tensor) and result_there else v, out)


def moved(model):
    """A module with its parameters and buffers elsewhere."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(p.detach().to(ELSEWHERE))
        for name, b in module.named_buffers(recurse=False):
            module._buffers[name] = b.to(ELSEWHERE)
    return model
