"""Readings of float32 values in the CPU's memory, compiled by numba: for measuring beside training.

Beside training a call costs more than what it reads: code and data are cold, and each of torch's own reductions reads
everything anew. Here one call takes everything that is wanted of a tensor, and one call takes all parameters.

Only this file imports numba (``pip install 'torchnotes[fast]'``), and it is itself imported where it is used. Memory is
passed by address, as making a NumPy array of a tensor costs half as much as reading it: the caller answers for it that
so many float32 values lie there side by side. Magnitudes are compared by their bits, which are ordered as the numbers
are, with infinity and NaN above them all: an integer maximum is vectorised and loses no NaN.
"""

# mypy: disable-error-code="assignment,return-value"
from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

from torchnotes.diagnostics._moments import SAFE_HIGH, SAFE_LOW
from torchnotes.diagnostics.measuring import Array

carray: Any = numba.carray  # type: ignore[attr-defined]
intrinsic: Any = _intrinsic

_PIECE = 4096  # sums are float32 within a piece, in several lanes, and float64 across pieces
_SHARE = 1 << 14  # values for which it pays to start a thread
_MOST = 128  # threads
_HEAD, _ROW = 8, 8  # numbers of eight bytes before the threads' rows, and in each: a cache line
_RUNTIME = 5  # addresses that ``_runtime`` finds
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_SAFE_LOW, _SAFE_HIGH = np.float32(SAFE_LOW), np.float32(SAFE_HIGH)

# Sums may be taken in any order, so that they are vectorised; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "boundscheck": False}
_part = numba.njit(**_OPTIONS)


def _compiled(signature: str, kind: Callable[..., Any] = numba.njit) -> Callable[[Any], Any]:
    """Compile at once, and keep the code on disk where there is a place for it."""

    def compile_(function: Any) -> Any:
        try:
            return kind(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return kind(signature, **_OPTIONS)(function)

    return compile_


_team_body = _compiled("void(intp)", numba.cfunc)  # called by C code with the address of its data


def _pointer_to(kind: Any) -> Any:
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return intrinsic(pointer)


_floats, _integers = _pointer_to(types.float32), _pointer_to(types.int32)
_doubles, _longs = _pointer_to(types.float64), _pointer_to(types.int64)


@intrinsic
def _call(typing_context: Any, function: Any) -> Any:
    """Call the C function ``int f(void)`` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        found = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return builder.sext(found, ir.IntType(64))

    return types.int64(types.intp), generate


@intrinsic
def _start_team(typing_context: Any, start: Any, body: Any, data: Any) -> Any:
    """Call ``GOMP_parallel(body, data, 0, 0)``: body(data) in every thread of a team of the usual size, to its end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, count = ir.IntType(64), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [word, word, count, count])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [*arguments[1:], count(0), count(0)])
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, types.intp), generate


@_part
def _number_of(bits: int) -> float:
    room = np.empty(1, np.int32)
    room[0] = bits
    return room.view(np.float32)[0]  # type: ignore[no-any-return]


@_part
def _piece_sums(x: Any, bits: Any) -> tuple[float, float, int, int]:
    """Σx², Σx, the bits of max|x| and the number of zeros."""
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
    return square, total, largest, zeros


@_team_body
def _share(data: int) -> None:
    """What one thread of a team does: the sums of its part of the values, into its own row."""
    order = carray(_longs(data), (_HEAD,))
    address, count = order[0], order[1]
    number, size = _call(order[2]), min(_call(order[3]), order[4])
    if number >= size:
        return
    start, end = count * number // size, count * (number + 1) // size
    values = carray(_floats(address + 4 * start), (end - start,))
    square, total, largest, zeros = _piece_sums(values, carray(_integers(address + 4 * start), (end - start,)))
    row = carray(_doubles(data + 8 * (_HEAD + _ROW * number)), (_ROW,))
    row[0], row[1], row[2], row[3] = square, total, largest, zeros


@_part
def _team_sums(address: int, count: int, team: int) -> tuple[float, float, int, int]:
    """The same by all threads of torch's, each its part."""
    runtime = carray(_longs(team), (_RUNTIME,))
    size = min(count // _SHARE, _MOST)
    room = np.zeros(_HEAD + _ROW * size, np.float64)
    order = room[:_HEAD].view(np.int64)
    order[0], order[1], order[2], order[3], order[4] = address, count, runtime[1], runtime[2], size
    _start_team(runtime[0], runtime[3], room.ctypes.data)
    square, total, largest, zeros = 0.0, 0.0, np.int32(0), 0
    for i in range(size):
        row = room[_HEAD + _ROW * i : _HEAD + _ROW * (i + 1)]
        square += row[0]
        total += row[1]
        largest = max(largest, np.int32(row[2]))
        zeros += np.int64(row[3])
    return square, total, largest, zeros


@_compiled("Tuple((float64, float64, float64, float32, int64))(intp, int64, intp)")
def sums(address: int, count: int, team: int) -> tuple[float, float, float, float, int]:
    """Σx², Σx, Σ(x − x̄)², max|x| and the number of zeros of a vector.

    The fourth is infinite or NaN where a value is; the sums then mean nothing.
    """
    x = carray(_floats(address), (count,))
    if team != 0 and count >= 2 * _SHARE:
        square, total, largest, zeros = _team_sums(address, count, team)
    else:
        square, total, largest, zeros = _piece_sums(x, carray(_integers(address), (count,)))
    bound = _number_of(largest)
    if 0 < largest < _INFINITE and (bound > _SAFE_HIGH or square < count * _SAFE_LOW * _SAFE_LOW):
        square, total = 0.0, 0.0
        for j in range(count):
            wide = np.float64(x[j])
            square += wide * wide
            total += wide
    spread = square - total * total / count
    if spread < 0.1 * square:  # the square of the mean is most of the mean square: the difference has lost its digits
        mean, spread, rest = total / count, 0.0, 0.0
        for j in range(count):
            distance = x[j] - mean
            spread += distance * distance
            rest += distance
        spread -= rest * rest / count
        total += rest
    return square, total, spread, bound, zeros


@_compiled("void(int64[::1], int64[::1], float64[:, ::1], intp)")
def sums_of_many(addresses: Any, counts: Any, out: Any, team: int) -> None:
    """The same of many vectors: a row of the count and the five numbers for each."""
    for i in range(addresses.size):
        out[i, 0] = counts[i]
        out[i, 1], out[i, 2], out[i, 3], out[i, 4], out[i, 5] = sums(addresses[i], counts[i], team)


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


@_compiled("Tuple((float64, float64, float64, float32, int64))(intp, int64, int64, int64, int32[::1], intp)")
def sums_and_idle(
    address: int, outer: int, channels: int, inner: int, idle: Any, team: int
) -> tuple[float, float, float, float, int]:
    """What ``sums`` takes, and which units were zero everywhere, of values of shape (outer, channels, inner).

    Args:
        address: of the values.
        outer: values before the axis of the units, samples among them.
        channels: units.
        inner: values behind that axis, such as the places of an image.
        idle: an entry for each unit; it becomes 1 where the unit was zero everywhere, else 0.
        team: as for ``sums``.
    """
    found = sums(address, outer * channels * inner, team)
    values = carray(_floats(address), (outer, channels, inner))
    _mark_idle(values, np.float32(0), np.float32(0), True, idle)
    return found  # type: ignore[no-any-return]


@_compiled("int64(intp, int64, int64, int64, float32, float32, int32[::1])")
def flat_and_idle(address: int, outer: int, channels: int, inner: int, low: float, high: float, idle: Any) -> int:
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
    _mark_idle(values, above, below, False, idle)
    return total


@_part
def _gather(plan: Any, i: int, joined: Any) -> None:
    address, stride, run, count, at = plan[0, i], plan[1, i], plan[2, i], plan[3, i], plan[4, i]
    x = carray(_floats(address), ((count // run - 1) * stride + run,))
    for j in range(count // run):
        for k in range(run):
            joined[at + j * run + k] = x[j * stride + k]


@_part
def _relative_change(plan: Any, i: int, before: Any) -> float:
    address, stride, run, count, at = plan[0, i], plan[1, i], plan[2, i], plan[3, i], plan[4, i]
    x = carray(_floats(address), ((count // run - 1) * stride + run,))
    change, size = 0.0, 0.0
    for j in range(count // run):
        for k in range(run):
            old = before[at + j * run + k]
            step = np.float64(x[j * stride + k] - old)
            change += step * step
            size += np.float64(old) * np.float64(old)
    if size > 0:
        return np.sqrt(change / size)  # type: ignore[no-any-return]
    return np.inf if change > 0 else np.nan


@_team_body
def _sample_share(data: int) -> None:
    """What one thread of a team does of ``gather``; of ``relative_change`` where there is a place for results."""
    order = carray(_longs(data), (_HEAD,))
    count, number, size = order[1], _call(order[6]), _call(order[7])
    plan = carray(_longs(order[0]), (5, count))
    joined, results = carray(_floats(order[2]), (order[3],)), order[4]
    for i in range(count * number // size, count * (number + 1) // size):
        if results == 0:
            _gather(plan, i, joined)
        else:
            carray(_doubles(results), (count,))[i] = _relative_change(plan, i, joined)


@_part
def _sample_by_team(plan: Any, joined: Any, results: int, team: int) -> None:
    runtime = carray(_longs(team), (_RUNTIME,))
    order = np.empty(_HEAD, np.int64)
    order[0], order[1], order[2], order[3] = plan.ctypes.data, plan.shape[1], joined.ctypes.data, joined.size
    order[4], order[6], order[7] = results, runtime[1], runtime[2]
    _start_team(runtime[0], runtime[4], order.ctypes.data)


@_compiled("void(int64[:, ::1], float32[::1], intp)")
def gather(plan: Any, joined: Any, team: int) -> None:
    """Join samples of many vectors: each entry is read from a cache line of its own, which is what it costs.

    Args:
        plan: for each vector its address, the stride from one run of entries to the next, the entries side by side in a
            run, their number in all, and where they begin in ``joined``.
        joined: takes the entries.
        team: as for ``sums``.
    """
    if team != 0:
        _sample_by_team(plan, joined, 0, team)
    else:
        for i in range(plan.shape[1]):
            _gather(plan, i, joined)


@_compiled("void(int64[:, ::1], float32[::1], float64[::1], intp)")
def relative_change(plan: Any, before: Any, out: Any, team: int) -> None:
    """√(Σ(x − x₀)² / Σx₀²) of each vector, over the entries x₀ that ``gather`` has joined in ``before``."""
    if team != 0:
        _sample_by_team(plan, before, out.ctypes.data, team)
    else:
        for i in range(plan.shape[1]):
            out[i] = _relative_change(plan, i, before)


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


@functools.cache
def _runtime() -> Array | None:
    """What ``sums`` needs to use the threads of torch's own pool: addresses in its OpenMP runtime; None without GNU's.

    Threads of another pool would take turns with those of the training step, which spin between its kernels.
    """
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        library = ctypes.CDLL(str(path))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
        return np.array([*found, _share.address, _sample_share.address], dtype=np.int64)
    return None


def team() -> int:
    """For ``sums``: address of what it needs to use torch's threads; 0 to do without."""
    runtime = _runtime()
    return 0 if runtime is None or torch.get_num_threads() == 1 else int(runtime.ctypes.data)
