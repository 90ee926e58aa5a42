"""Argument checks, and the wording of the errors they raise.

Every message says three things: what must hold, what came, what to do about it. A check belongs in the public
function; the private arithmetic behind it may then rely on what was checked.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def describe(value: object) -> str:
    """What came, in a few words: a tensor by shape and dtype, anything else by type and value."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def check_tensor(value: object, name: str) -> None:
    """Refuse anything but a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {describe(value)}; convert it with torch.as_tensor({name})."
        )


def check_floating(value: object, name: str) -> None:
    """Refuse anything but a real floating-point tensor: only those have gradients here."""
    if not isinstance(value, Tensor):
        check_tensor(value, name)
    elif not value.dtype.is_floating_point:
        raise TypeError(
            f"{name} must be a floating-point tensor, got dtype {str(value.dtype).removeprefix('torch.')}; "
            f"convert it with {name}.float() or {name}.double()."
        )


def check_in_range(
    value: Any,
    name: str,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
    remedy: str,
) -> None:
    """Refuse a number outside an interval, NaN included.

    Args:
        value: the number.
        name: what the caller calls it.
        low: lower end.
        high: upper end; ``math.inf`` for none.
        low_open: the lower end itself is refused.
        high_open: the upper end itself is refused.
        remedy: what to do about it, the last clause of the message.
    """
    interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open or math.isinf(high) else ']'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in {interval}, got {describe(value)}; {remedy}.")
    above = value > low if low_open else value >= low
    below = value < high if high_open or math.isinf(high) else value <= high
    if not (above and below):
        raise ValueError(f"{name} must lie in {interval}, got {value!r}; {remedy}.")


def check_generator(generator: object, device: torch.device) -> None:
    """Refuse a generator of another device: its numbers cannot fill a tensor there."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {describe(generator)}; "
            f"make one with torch.Generator({str(device)!r}).manual_seed(seed)."
        )
    if generator.device.type != device.type:
        raise ValueError(
            f"generator must live on the tensor's device {device}, got one on {generator.device}; "
            f"make one with torch.Generator({str(device)!r}).manual_seed(seed)."
        )


def check_same_shape(
    output: Tensor, target: Tensor, *, output_name: str = "input", target_name: str = "target"
) -> None:
    """Refuse a target whose shape is not the output's, naming the broadcast that would have happened.

    A target of shape (m,) against an output of (m, 1) broadcasts to (m, m) without a word: every sample would be
    compared with every other one's target. (The notes, "Python and vectorisation": no rank-1 arrays.)
    """
    if output.shape == target.shape:
        return
    got = f"got {target_name} {tuple(target.shape)} against {output_name} {tuple(output.shape)}"
    must = f"{target_name} must have the shape of {output_name}"
    if output.numel() == target.numel():
        remedy = f"use {target_name}.reshape({output_name}.shape) if the order of the elements is right"
        if output.dim() == target.dim() + 1 and output.shape[-1] == 1:
            remedy = f"add the missing axis with {target_name}.unsqueeze(-1)"
        elif target.dim() == output.dim() + 1 and target.shape[-1] == 1:
            remedy = f"drop the extra axis with {target_name}.squeeze(-1)"
    else:
        remedy = f"check how {target_name} was batched"
    try:
        broadcast = tuple(torch.broadcast_shapes(output.shape, target.shape))
    except RuntimeError:
        raise ValueError(f"{must}, {got}; {remedy}.") from None
    raise ValueError(f"{must}, {got}, which would silently broadcast to {broadcast}; {remedy}.")
