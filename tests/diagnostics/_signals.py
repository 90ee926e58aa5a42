"""Records of a chain of modules, made by plain arithmetic in float64: independent of the package's own capture."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from torchnotes.diagnostics.records import LayerSignal, Moments


def moments(x: Tensor) -> Moments:
    values = x.detach().numpy().astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Moments(values.size, *[math.nan] * 5, 0.0, None, values.size)
    scale = float(np.abs(finite).max())
    rms = scale * math.sqrt(np.square(finite / scale).mean()) if scale > 0 else 0.0
    return Moments(
        count=values.size,
        log10_rms=math.log10(rms) if rms > 0 else -math.inf,
        rms=rms,
        mean=float(finite.mean()),
        std=float(finite.std()),
        max_abs=scale,
        share_zero=float((values == 0).mean()),
        share_saturated=None,
        nonfinite=values.size - finite.size,
    )


def _role(module: nn.Module) -> str:
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        return "weight"
    if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
        return "normalization"
    return "dropout" if isinstance(module, nn.Dropout) else "activation"


def signals(model: nn.Sequential, x: Tensor, cotangent: Tensor | None = None) -> list[LayerSignal]:
    """One forward and, with a random cotangent on the output, one backward pass."""
    outputs, h = [], x
    for module in model:
        h = module(h)
        if h.requires_grad:
            h.retain_grad()
        outputs.append(h)
    if cotangent is None:
        cotangent = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(1))
    h.backward(cotangent)
    records, depth = [], 0
    for order, (module, output) in enumerate(zip(model, outputs, strict=True)):
        weight = getattr(module, "weight", None)
        depth += _role(module) == "weight"
        matrix = weight is not None and weight.dim() >= 2
        records.append(
            LayerSignal(
                name=f"layers.{order}",
                kind=type(module).__name__,
                call=0,
                order=order,
                depth=depth,
                role=_role(module),
                shape=tuple(output.shape),
                dtype=str(output.dtype).removeprefix("torch."),
                activation=moments(output),
                gradient=moments(output.grad) if output.grad is not None else None,
                weight=moments(weight) if weight is not None else None,
                bias=moments(module.bias) if getattr(module, "bias", None) is not None else None,
                fan_in=weight[0].numel() if matrix else None,
                fan_out=weight.shape[0] * weight[0, 0].numel() if matrix else None,
                module=module,
            )
        )
    return records


def mlp(depth: int, width: int, activation: type[nn.Module] | None, variance: float, seed: int) -> nn.Sequential:
    """``depth`` square layers without bias, weights N(0, variance/width), an activation after each but the last."""
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for index in range(depth):
        layer = nn.utils.skip_init(nn.Linear, width, width, bias=False)
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(variance / width), generator=generator)
        modules.append(layer)
        if activation is not None and index < depth - 1:
            modules.append(activation())
    return nn.Sequential(*modules)
