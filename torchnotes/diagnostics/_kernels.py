"""Readings of float32 values in the CPU's memory, compiled by numba: for measuring beside training.

Beside training a call costs more than what it reads: code and data are cold, and each of torch's own reductions reads
everything anew. Here one call takes everything that is wanted of a tensor, and one call takes all parameters.

Only this file imports numba (``pip install 'torchnotes[fast]'``), and it is itself imported where it is used. Memory is
passed by address, as making a NumPy array of a tensor costs half as much as reading it: the caller answers for it that
so many float32 values lie there side by side. Magnitudes are compared by their bits, which are ordered as the numbers
are, with infinity and NaN above them all: an integer maximum is vectorised and loses no NaN.
"""

# mypy: disable-error-code="assignment,attr-defined"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types
from numba.extending import intrinsic

_PIECE = 4096  # sums are float32 within a piece, in several lanes, and float64 across pieces
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_SAFE_LOW, _SAFE_HIGH = np.float32(1e-12), np.float32(1e11)  # within these the square of a float32 has all its digits

# Sums may be taken in any order, so that they are vectorised; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "boundscheck": False}
_part = numba.njit(**_OPTIONS)


def _compiled(signature: str) -> Callable[[Any], Any]:
    """Compile at once, and keep the code on disk where there is a place for it."""

    def compile_(function: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(signature, **_OPTIONS)(function)

    return compile_


def _pointer_to(kind: Any) -> Any:
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return intrinsic(pointer)


_floats, _integers = _pointer_to(types.float32), _pointer_to(types.int32)


@_part
def _number_of(bits: int) -> float:
    room = np.empty(1, np.int32)
    room[0] = bits
    return room.view(np.float32)[0]  # type: ignore[no-any-return]


@_part
def _sums(x: Any, bits: Any) -> tuple[float, float, float, float, int]:
    square, total, largest, zeros = 0.0, 0.0, np.int32(0), 0
    for start in range(0, x.size, _PIECE):
        part_square, part_total, part_zeros = np.float32(0), np.float32(0), np.int32(0)
        for j in range(start, min(start + _PIECE, x.size)):
            value = x[j]
            part_square += value * value
            part_total += value
            magnitude = np.int32(bits[j] & _MAGNITUDE)
            largest = max(largest, magnitude)
            part_zeros = np.int32(part_zeros + np.int32(magnitude == 0))
        square += part_square
        total += part_total
        zeros += part_zeros
    bound = _number_of(largest)
    if 0 < largest < _INFINITE:
        if bound > _SAFE_HIGH or square < x.size * _SAFE_LOW * _SAFE_LOW:
            square, total = 0.0, 0.0
            for j in range(x.size):
                wide = np.float64(x[j])
                square += wide * wide
                total += wide
    spread = square - total * total / x.size
    if spread < 0.1 * square:  # the square of the mean is most of the mean square: the difference has lost its digits
        mean, spread, rest = total / x.size, 0.0, 0.0
        for j in range(x.size):
            distance = x[j] - mean
            spread += distance * distance
            rest += distance
        spread -= rest * rest / x.size
        total += rest
    return square, total, spread, bound, zeros


@_compiled("Tuple((float64, float64, float64, float32, int64))(intp, int64)")
def sums(address: int, count: int) -> tuple[float, float, float, float, int]:
    """Σx², Σx, Σ(x − x̄)², max|x| and the number of zeros of a vector.

    The fourth is infinite or NaN where a value is; the sums then mean nothing.
    """
    return _sums(carray(_floats(address), (count,)), carray(_integers(address), (count,)))  # type: ignore[no-any-return]


@_compiled("void(int64[::1], int64[::1], float64[:, ::1])")
def sums_of_many(addresses: Any, counts: Any, out: Any) -> None:
    """The same of many vectors, a row each."""
    for i in range(addresses.size):
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = sums(addresses[i], counts[i])


@_part
def _mark_idle(values: Any, low: float, high: float, within: bool, marks: Any) -> None:
    """Mark by 1 the units of which all values lie within [low, high], or all outside of it; the others by 0.

    Stops once every unit has been seen to work, which in a sound layer takes few samples.
    """
    outer, channels, inner = values.shape
    marks[:] = 1
    for i in range(outer):
        left = np.int32(0)
        if inner == 1:  # the units lie side by side: the loop over them is vectorised
            for j in range(channels):
                inside = (values[i, j, 0] >= low) & (values[i, j, 0] <= high)
                marks[j] = np.int32(marks[j] & np.int32(inside == within))
                left = np.int32(left + marks[j])
        else:
            for j in range(channels):
                k = 0
                while marks[j] and k < inner:
                    marks[j] = (low <= values[i, j, k] <= high) == within
                    k += 1
                left = np.int32(left + marks[j])
        if left == 0:
            return


@_compiled("Tuple((float64, float64, float64, float32, int64))(intp, int64, int64, int64, intp)")
def sums_and_idle(
    address: int, outer: int, channels: int, inner: int, idle: int
) -> tuple[float, float, float, float, int]:
    """What ``sums`` takes, and which units were zero everywhere, of values of shape (outer, channels, inner).

    Args:
        address: of the values.
        outer: values before the axis of the units, samples among them.
        channels: units.
        inner: values behind that axis, such as the places of an image.
        idle: address of ``channels`` int32; each becomes 1 where the unit was zero everywhere, else 0.
    """
    values = carray(_floats(address), (outer, channels, inner))
    _mark_idle(values, np.float32(0), np.float32(0), True, carray(_integers(idle), (channels,)))
    return sums(address, outer * channels * inner)  # type: ignore[no-any-return]


@_compiled("int64(intp, int64, int64, int64, float32, float32, intp)")
def flat_and_idle(address: int, outer: int, channels: int, inner: int, low: float, high: float, idle: int) -> int:
    """How many values, none of them NaN, are at most ``low`` or at least ``high``.

    ``idle`` is as for ``sums_and_idle``, with 1 for the units of which all values are.
    """
    x = carray(_floats(address), (outer * channels * inner,))
    total = 0
    for start in range(0, x.size, _PIECE):
        part = np.int32(0)
        for j in range(start, min(start + _PIECE, x.size)):
            part = np.int32(part + np.int32((x[j] <= low) | (x[j] >= high)))
        total += part
    # The ends themselves are flat: what works lies strictly between them.
    above, below = np.nextafter(low, np.float32(np.inf)), np.nextafter(high, np.float32(-np.inf))
    values = carray(_floats(address), (outer, channels, inner))
    _mark_idle(values, above, below, False, carray(_integers(idle), (channels,)))
    return total


@_compiled("void(int64[::1], int64[::1], int64[::1], float32[::1])")
def gather(addresses: Any, strides: Any, counts: Any, out: Any) -> None:
    """Every ``strides[i]``-th value of each vector, ``counts[i]`` of them, joined."""
    at = 0
    for i in range(addresses.size):
        x = carray(_floats(addresses[i]), (1 + (counts[i] - 1) * strides[i],))
        for j in range(counts[i]):
            out[at + j] = x[j * strides[i]]
        at += counts[i]


@_compiled("void(int64[::1], int64[::1], int64[::1], float32[::1], float64[::1])")
def relative_change(addresses: Any, strides: Any, counts: Any, before: Any, out: Any) -> None:
    """√(Σ(x − x₀)² / Σx₀²) of each vector, over the values that ``gather`` has put into ``before``."""
    at = 0
    for i in range(addresses.size):
        x = carray(_floats(addresses[i]), (1 + (counts[i] - 1) * strides[i],))
        change, size = 0.0, 0.0
        for j in range(counts[i]):
            old = before[at + j]
            step = np.float64(x[j * strides[i]] - old)
            change += step * step
            size += np.float64(old) * np.float64(old)
        out[i] = np.sqrt(change / size) if size > 0 else (np.inf if change > 0 else np.nan)
        at += counts[i]


@_compiled("void(float32[::1], int64[::1], float64, float64, float64[::1], float64[::1], float64[:, ::1])")
def average(values: Any, counts: Any, factor: float, decay: float, mean: Any, square: Any, out: Any) -> None:
    """Take g = factor · value into averages m ← βm + (1 − β)g and s ← βs + (1 − β)g²; a row of (Σm², Σs) for each part.

    ``counts`` are the lengths of the parts.
    """
    at = 0
    for i in range(counts.size):
        signal, power = 0.0, 0.0
        for j in range(at, at + counts[i]):
            gradient = factor * np.float64(values[j])
            mean[j] = decay * mean[j] + (1 - decay) * gradient
            square[j] = decay * square[j] + (1 - decay) * gradient * gradient
            signal += mean[j] * mean[j]
            power += square[j]
        out[i, 0], out[i, 1] = signal, power
        at += counts[i]


@_compiled("void(int32[::1], int32[::1], int32[::1], int64[::1], int64, float64[::1])")
def count_idle(idle: Any, length: Any, total: Any, sizes: Any, window: int, shares: Any) -> None:
    """Count a step in which the units marked by 1 were idle; by layer the share that was so for ``window`` steps.

    ``length`` holds for each unit how many steps in a row it has been idle, ``total`` how many in all.
    """
    at = 0
    for i in range(sizes.size):
        gone = 0
        for j in range(at, at + sizes[i]):
            length[j] = (length[j] + 1) * idle[j]
            total[j] += idle[j]
            gone += length[j] >= window
        shares[i] = gone / sizes[i]
        at += sizes[i]
