"""Shape assertions that name their axes: say what a tensor must look like, be told what came instead."""

from __future__ import annotations

from torch import Tensor

from torchnotes._checks import check_tensor

__all__ = ["expect"]


def expect(tensor: Tensor, axes: str, /, *, name: str = "tensor", **sizes: int) -> dict[str, int]:
    """Assert the shape of a tensor by named axes, and return the size of each name.

    Axes are separated by spaces. A number must be met exactly; a name met before, in ``axes`` or in ``sizes``,
    must have the same size again; a new name takes whatever size it finds; a leading ``*`` name takes any number
    of axes. Feed the result of one call to the next to tie tensors together:

    >>> import torch
    >>> x, y = torch.zeros(209, 20), torch.zeros(209)
    >>> sizes = expect(x, "m n_in", name="x")
    >>> sizes
    {'m': 209, 'n_in': 20}
    >>> expect(y, "m 1", name="y", m=sizes["m"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: y must have shape (m=209, 1), got (209,); a rank-1 tensor broadcasts against a column...

    Args:
        tensor: the tensor to check.
        axes: the expected axes, such as ``"m n_in"``, ``"m 1"`` or ``"*batch n_out"``.
        name: what to call the tensor in the message.
        **sizes: sizes already known by name.

    Returns:
        The sizes of the names in ``axes``; a starred name is left out.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: the shape does not match, or ``axes`` has more than one starred name or one that is not leading.

    Source: the notes, "a note on Python vectors": assert shapes, use no rank-1 arrays; SPEC E5.
    """
    check_tensor(tensor, name)
    names = axes.split()
    if any(axis.startswith("*") for axis in names[1:]):
        raise ValueError(f"only the first axis may be starred, got axes {axes!r}; write it as '*batch ...'.")
    starred = bool(names) and names[0].startswith("*")
    fixed = names[1:] if starred else names
    shape = tuple(tensor.shape)
    trailing = shape[len(shape) - len(fixed) :] if len(shape) >= len(fixed) else ()
    known = dict(sizes)
    found: dict[str, int] = {}
    matches = len(shape) >= len(fixed) if starred else len(shape) == len(fixed)
    for axis, size in zip(fixed, trailing, strict=False):
        wanted = int(axis) if axis.isdecimal() else known.setdefault(axis, size)
        matches = matches and size == wanted
        if not axis.isdecimal():
            found[axis] = size
    if not matches:
        expected = ", ".join([*names[: int(starred)], *(_with_size(axis, sizes) for axis in fixed)])
        expected = f"({expected},)" if len(names) == 1 else f"({expected})"
        raise ValueError(f"{name} must have shape {expected}, got {shape}; {_remedy(shape, fixed, name)}.")
    return found


def _with_size(axis: str, sizes: dict[str, int]) -> str:
    return f"{axis}={sizes[axis]}" if axis in sizes else axis


def _remedy(shape: tuple[int, ...], fixed: list[str], name: str) -> str:
    if len(shape) == 1 and len(fixed) == 2 and fixed[1] == "1":
        return f"a rank-1 tensor broadcasts against a column into a matrix: make it a column with {name}.unsqueeze(1)"
    if len(shape) == 1 and len(fixed) == 2:
        return f"make it a batch of one with {name}.unsqueeze(0)"
    return "check the order of its axes and how it was batched"
