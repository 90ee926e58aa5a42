"""Readings of float32 values in the CPU's memory, compiled by numba: for measuring beside training.

Beside training a call costs more than what it reads: code and data are cold, and each of torch's own reductions reads
everything anew. Here one call takes everything that is wanted of a tensor,
and one call takes all parameters. Magnitudes are compared by their bits, which
are ordered as the numbers are, with infinity and NaN above them all: an integer maximum is vectorised and loses no NaN.
"""

# mypy: disable-error-code="assignment,return-value"
from __future__ import annotations

from typing import Any

import numpy as np

from torchnotes.diagnostics._compiling import (
    MOST,
    Team,
    call,
    carray,
    compiled,
    doubles,
    floats,
    integers,
    longs,
    part,
    start_team,
    team_body,
)
from torchnotes.diagnostics._moments import SAFE_HIGH, SAFE_LOW

WIDTH = 7  # numbers in a row of sums
SHARE = 1 << 14  # values for which it pays to start a thread
_PIECE = 4096  # sums are float32 within a piece, in several lanes, and float64 across pieces
_FEW = 8  # samples: fewer are not shared out whole, and after so many it is asked whether any unit is left
_HEAD, _ROW = 8, 8  # numbers of eight bytes before the threads' rows, and in each: a cache line
_LONG_HEAD = 16
_SHARE_BODY, _CHANGE_BODY, _READ_BODY, _RUNTIME = 3, 4, 5, 6  # places of the bodies in ``team``, and its length
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_SAFE_LOW, _SAFE_HIGH = np.float32(SAFE_LOW), np.float32(SAFE_HIGH)


@part
def _number_of(bits: int) -> float:
    room = np.empty(1, np.int32)
    room[0] = bits
    return room.view(np.float32)[0]  # type: ignore[no-any-return]


@part
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


@part
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


@part
def _mark_zero(address: int, outer: int, channels: int, inner: int, marks: Any) -> None:
    """Mark by 1 the units that are zero everywhere, the others by 0."""
    if inner > 1:
        _mark_idle(carray(floats(address), (outer, channels, inner)), np.float32(0), np.float32(0), True, marks)
        return
    bits = carray(integers(address), (outer, channels))
    marks[:] = 1
    for start in range(0, outer, _FEW):
        for i in range(start, min(start + _FEW, outer)):
            for j in range(channels):
                marks[j] = np.int32(marks[j] & np.int32((bits[i, j] & _MAGNITUDE) == 0))
        left = np.int32(0)
        for j in range(channels):
            left = np.int32(left + marks[j])
        if left == 0:
            return


@team_body
def _share(data: int) -> None:
    """What one thread of a team does: the sums of its part of the values, into its row; marks go behind all rows."""
    order = carray(longs(data), (_HEAD,))
    address, count, outer, channels, inner = order[0], order[1], order[5], order[6], order[7]
    number, size = call(order[2]), min(call(order[3]), order[4])
    if number >= size:
        return
    start, end = count * number // size, count * (number + 1) // size
    if channels:  # whole samples
        start, end = outer * number // size * channels * inner, outer * (number + 1) // size * channels * inner
    values = carray(floats(address + 4 * start), (end - start,))
    square, total, largest, zeros = _piece_sums(values, carray(integers(address + 4 * start), (end - start,)))
    row = carray(doubles(data + 8 * (_HEAD + _ROW * number)), (_ROW,))
    row[0], row[1], row[2], row[3] = square, total, largest, zeros
    if channels:
        marks = carray(integers(data + 8 * (_HEAD + _ROW * order[4]) + 4 * channels * number), (channels,))
        _mark_zero(address + 4 * start, (end - start) // (channels * inner), channels, inner, marks)


@part
def _team_sums(
    address: int, count: int, team: int, outer: int, channels: int, inner: int, idle: int
) -> tuple[float, float, int, int]:
    """``_piece_sums`` by all threads of torch's, each its part; ``idle`` is marked too where there are channels."""
    runtime = carray(longs(team), (_RUNTIME,))
    size = min(count // SHARE, MOST)
    room = np.zeros(_HEAD + _ROW * size + (channels * size + 1) // 2, np.float64)
    order = room[:_HEAD].view(np.int64)
    order[0], order[1], order[2], order[3], order[4] = address, count, runtime[1], runtime[2], size
    order[5], order[6], order[7] = outer, channels, inner
    if channels:  # also of a thread that the team has not got
        room[_HEAD + _ROW * size :].view(np.int32)[:] = 1
    start_team(runtime[0], runtime[_SHARE_BODY], room.ctypes.data)
    square, total, largest, zeros = 0.0, 0.0, np.int32(0), 0
    for i in range(size):
        row = room[_HEAD + _ROW * i : _HEAD + _ROW * (i + 1)]
        square += row[0]
        total += row[1]
        largest = max(largest, np.int32(row[2]))
        zeros += np.int64(row[3])
    if channels:
        found, marks = carray(integers(idle), (channels,)), room[_HEAD + _ROW * size :].view(np.int32)
        found[:] = 1
        for i in range(size):
            for j in range(channels):
                found[j] = np.int32(found[j] & marks[channels * i + j])
    return square, total, largest, zeros


@part
def _settle(x: Any, square: float, total: float, largest: int, zeros: int, row: Any) -> bool:
    """Write a row of the count, Σx², Σx, Σ(x − x̄)², max|x| and zeros, with more care where the first sums want it."""
    count, bound = x.size, _number_of(largest)
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
    row[0], row[1], row[2], row[3], row[4], row[5] = count, square, total, spread, bound, zeros
    row[6] = -1.0
    return largest < _INFINITE


@compiled("boolean(intp, int64, intp, intp)")
def sums(address: int, count: int, row: int, team: int) -> bool:
    """The count, Σx², Σx, Σ(x − x̄)², max|x| and the number of zeros of a vector, and −1 for what is not counted.

    Args:
        address: of the values.
        count: how many.
        row: address of the seven float64 numbers that are written.
        team: from ``team()``, to use torch's threads where they pay; 0 to do without.

    Returns:
        Whether all values are finite; the sums mean nothing where one is not.
    """
    x = carray(floats(address), (count,))
    if team != 0 and count >= 2 * SHARE:
        square, total, largest, zeros = _team_sums(address, count, team, 0, 0, 0, 0)
    else:
        square, total, largest, zeros = _piece_sums(x, carray(integers(address), (count,)))
    return _settle(x, square, total, largest, zeros, carray(doubles(row), (WIDTH,)))  # type: ignore[no-any-return]


@compiled("boolean(intp, int64, int64, int64, intp, intp, intp)")
def sums_and_idle(address: int, outer: int, channels: int, inner: int, row: int, idle: int, team: int) -> bool:
    """What ``sums`` does, and which units were zero everywhere, of values of shape (outer, channels, inner).

    Args:
        address: of the values.
        outer: values before the axis of the units, samples among them.
        channels: units.
        inner: values behind that axis, such as the places of an image.
        row: as for ``sums``.
        idle: address of an int32 for each unit; it becomes 1 where the unit was zero everywhere, else 0.
        team: as for ``sums``.
    """
    count = outer * channels * inner
    x = carray(floats(address), (count,))
    shared = team != 0 and count >= 2 * SHARE
    by_sample = shared and outer >= _FEW
    if shared:
        own = channels if by_sample else 0
        square, total, largest, zeros = _team_sums(address, count, team, outer, own, inner, idle)
    else:
        square, total, largest, zeros = _piece_sums(x, carray(integers(address), (count,)))
    if not by_sample:
        _mark_zero(address, outer, channels, inner, carray(integers(idle), (channels,)))
    return _settle(x, square, total, largest, zeros, carray(doubles(row), (WIDTH,)))  # type: ignore[no-any-return]


@compiled("void(intp, int64, int64, int64, float32, float32, intp, intp)")
def flat_and_idle(
    address: int, outer: int, channels: int, inner: int, low: float, high: float, row: int, idle: int
) -> None:
    """How many values, none of them NaN, are at most ``low`` or at least ``high``, as the last number of the row.

    ``idle`` is as for ``sums_and_idle``, with 1 for the units of which all values are.
    """
    x = carray(floats(address), (outer * channels * inner,))
    total = 0
    for start in range(0, x.size, _PIECE):
        part = np.int32(0)
        for j in range(start, min(start + _PIECE, x.size)):
            part = np.int32(part + np.int32((x[j] <= low) | (x[j] >= high)))
        total += part
    carray(doubles(row), (WIDTH,))[6] = total
    # The ends themselves are flat: what works lies strictly between them.
    above, below = np.nextafter(low, np.float32(np.inf)), np.nextafter(high, np.float32(-np.inf))
    values = carray(floats(address), (outer, channels, inner))
    _mark_idle(values, above, below, False, carray(integers(idle), (channels,)))


@part
def _own_part(count: int, i: int, number: int, size: int) -> tuple[int, int]:
    """From where to where a thread reads the i-th vector: a share of each long one, the whole of some short ones."""
    if count >= size * SHARE:
        return count * number // size, count * (number + 1) // size
    return (0, count) if i % size == number else (0, 0)


@part
def _read_part(orders: Any, samples: Any, joined: Any, parts: Any, number: int, size: int) -> None:
    """What one of ``size`` threads does of ``sums_and_samples``: its part of every vector."""
    for i in range(orders.shape[1]):
        address, count, wanted, own = orders[0, i], orders[1, i], orders[2, i], orders[3, i]
        start, end = _own_part(count, i, number, size)
        if start == end:
            parts[number, i, :] = 0.0
            continue
        if wanted:
            values = carray(floats(address + 4 * start), (end - start,))
            bits = carray(integers(address + 4 * start), (end - start,))
            square, total, largest, zeros = _piece_sums(values, bits)
            parts[number, i, 0], parts[number, i, 1] = square, total
            parts[number, i, 2], parts[number, i, 3] = largest, zeros
        if own >= 0:  # in the same turn: the values have just come from memory
            stride, run, at = samples[1, own], samples[2, own], samples[4, own]
            x = carray(floats(address), (count,))
            for j in range((start + stride - 1) // stride, min(samples[3, own] // run, (end + stride - 1) // stride)):
                for k in range(run):
                    joined[at + j * run + k] = x[j * stride + k]


@team_body
def _read_share(data: int) -> None:
    """The same, called by a team."""
    order = carray(longs(data), (_LONG_HEAD,))
    number, size = call(order[8]), min(call(order[9]), order[7])
    if number < size:
        orders = carray(longs(order[0]), (4, order[1]))
        samples = carray(longs(order[2]), (5, order[3]))
        joined = carray(floats(order[4]), (order[5],))
        parts = carray(doubles(order[6]), (order[7], order[1], 4))
        _read_part(orders, samples, joined, parts, number, size)


@compiled("void(int64[:, ::1], int64[:, ::1], float64[:, ::1], float32[::1], int64, intp)")
def sums_and_samples(orders: Any, samples: Any, rows: Any, joined: Any, threads: int, team: int) -> None:
    """The sums of many vectors, and a sample of some of them: each is brought from memory once.

    Args:
        orders: for each vector its address, its length, whether its sums are wanted, and which column of ``samples`` is
            its own, −1 for none.
        samples: for each of those its address, the stride from one run of entries to the next, the entries side by side
            in a run, their number in all, and where they begin in ``joined``.
        rows: for each vector a row as of ``sums``; of one that is not finite the fifth number says so.
        joined: takes the entries.
        threads: of the team; 1 without.
        team: as for ``sums``.
    """
    count = orders.shape[1]
    size = min(threads, MOST) if team != 0 else 1
    parts = np.zeros((size, count, 4), np.float64)
    if size > 1:
        runtime = carray(longs(team), (_RUNTIME,))
        order = np.empty(_LONG_HEAD, np.int64)
        order[0], order[1], order[2], order[3] = orders.ctypes.data, count, samples.ctypes.data, samples.shape[1]
        order[4], order[5], order[6], order[7] = joined.ctypes.data, joined.size, parts.ctypes.data, size
        order[8], order[9] = runtime[1], runtime[2]
        start_team(runtime[0], runtime[_READ_BODY], order.ctypes.data)
    else:
        _read_part(orders, samples, joined, parts, 0, 1)
    for i in range(count):
        if orders[2, i]:
            square, total, largest, zeros = 0.0, 0.0, np.int32(0), 0
            for number in range(size):
                square += parts[number, i, 0]
                total += parts[number, i, 1]
                largest = max(largest, np.int32(parts[number, i, 2]))
                zeros += np.int64(parts[number, i, 3])
            _settle(carray(floats(orders[0, i]), (orders[1, i],)), square, total, largest, zeros, rows[i])


@part
def _relative_change(samples: Any, i: int, before: Any) -> float:
    address, stride, run, count, at = samples[0, i], samples[1, i], samples[2, i], samples[3, i], samples[4, i]
    x = carray(floats(address), ((count // run - 1) * stride + run,))
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


@team_body
def _change_share(data: int) -> None:
    """What one thread of a team does of ``relative_change``."""
    order = carray(longs(data), (_LONG_HEAD,))
    count, number, size = order[1], call(order[5]), call(order[6])
    samples, before = carray(longs(order[0]), (5, count)), carray(floats(order[2]), (order[3],))
    out = carray(doubles(order[4]), (count,))
    for i in range(count * number // size, count * (number + 1) // size):
        out[i] = _relative_change(samples, i, before)


@compiled("void(int64[:, ::1], float32[::1], float64[::1], intp)")
def relative_change(samples: Any, before: Any, out: Any, team: int) -> None:
    """√(Σ(x − x₀)² / Σx₀²) of each vector, over the entries x₀ that ``sums_and_samples`` has joined in ``before``.

    Each entry is read from a cache line of its own, which is what it costs.
    """
    if team != 0:
        runtime = carray(longs(team), (_RUNTIME,))
        order = np.empty(_LONG_HEAD, np.int64)
        order[0], order[1], order[2], order[3] = samples.ctypes.data, samples.shape[1], before.ctypes.data, before.size
        order[4], order[5], order[6] = out.ctypes.data, runtime[1], runtime[2]
        start_team(runtime[0], runtime[_CHANGE_BODY], order.ctypes.data)
    else:
        for i in range(samples.shape[1]):
            out[i] = _relative_change(samples, i, before)


team = Team(_share, _change_share, _read_share)
