"""The verdict: what the measured scales mean, with chance at finite width as the null hypothesis.

A fixed threshold calls a sound narrow net broken and a broken shallow net sound. Here the change over the whole depth
is held against a band that says what a sound net of these widths may do:

    [−1 + drift − 3 σ, 1 + 3 σ] decades of rms, and never beyond ±3

One decade is unevenness that no optimiser minds (a first or last layer of another shape, a scale that settles, a few
layers at ×0.7). Drift and σ are those of the random walk of :mod:`torchnotes.diagnostics.fluctuation`. The limit of 3
decades is there because chance, too, can break a net: where n is so small for the depth that the walk goes further,
the net is in trouble whatever its initialisation, and the reason says that width is what it lacks.

Three shapes count as leaving the band: a slope that adds up to more than it over the depth, a departure that lasts to
the end of the signal's way, and one of more than 3 decades that comes back before the end, on the way that all of the
signal takes (:mod:`torchnotes.diagnostics.verdict_excursion`). A layer beside that way (the queries of an attention, a
branch that starts near zero) may be as small as it likes. A scale that follows a power of depth (tanh at 1/n: q →
1/2l) is healthy: it slows down as it goes, where an exponential never does; the reason gives the exponent. Where all of
that is sound, a weight that stands out among others is still seen (:mod:`torchnotes.diagnostics.verdict_outlier`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torchnotes.diagnostics import fluctuation, verdict_excursion, verdict_outlier, verdict_profile
from torchnotes.diagnostics.growth import growth_of, growth_per_layer, trusted_log10
from torchnotes.diagnostics.prescription import prescribe
from torchnotes.diagnostics.records import Direction, Finding, LayerSignal, State, Verdict
from torchnotes.diagnostics.theory_quadrature import (
    ActivationMoments,
    activation_moments,
    as_elementwise,
    is_homogeneous,
)
from torchnotes.diagnostics.verdict_profile import Array, Profile

TOLERANCE = 1.0
SIGMAS = 3.0
LIMIT = 3.0

_IDENTITY = 2.0  # κ of the identity: E z⁴/(E z²)² − 1
_Cache = dict[tuple[str, str, int | None, int], ActivationMoments | None]
_NAMES = {"forward": "activations", "backward": "gradients"}


def judge(layers: Sequence[LayerSignal], *, tolerance: float = TOLERANCE, sigmas: float = SIGMAS) -> Verdict:
    """Judge the signals of one pass, forward and backward separately.

    Args:
        layers: the records of one pass, in order of execution.
        tolerance: decades of rms, over the whole net, that are harmless whatever their cause.
        sigmas: standard deviations of finite-width fluctuation allowed for.

    Returns:
        The verdict. ``first_bad_layer`` and ``reason`` are those of the activations where these are bad, else those of
        the gradients; ``findings`` has both. ``prescription`` is the cure for the former: what ails the activations
        ails the gradients, too.

    Raises:
        ValueError: ``layers`` is empty.
    """
    if not layers:
        raise ValueError("layers must hold at least one record, got none; run the probe on a model with modules in it.")
    steps = fluctuation_steps(layers)
    findings = [_judge_direction(layers, steps, "forward", tolerance, sigmas)]
    if any(layer.gradient is not None for layer in layers):
        findings.append(_judge_direction(layers, steps, "backward", tolerance, sigmas))
    if all(finding.state == "healthy" for finding in findings):
        findings[0] = verdict_outlier.judged_by_outliers(findings[0], layers, tolerance)
    bad = [finding for finding in findings if finding.state != "healthy"]
    cures = [cure for finding in bad if (cure := prescribe(layers, finding)) is not None]
    return Verdict(
        forward=findings[0].state,
        backward=findings[1].state if len(findings) > 1 else None,
        first_bad_layer=bad[0].first_bad_layer if bad else None,
        reason=" ".join(finding.reason for finding in bad or findings),
        prescription=cures[0].text if cures else "",
        findings=tuple(findings),
    )


def _judge_direction(
    layers: Sequence[LayerSignal],
    steps: dict[str, fluctuation.Step],
    direction: Direction,
    tolerance: float,
    sigmas: float,
) -> Finding:
    growth = growth_per_layer(layers, direction)
    curve = verdict_profile.profile(layers, direction)
    lower, upper = _band(curve, steps, tolerance, sigmas)
    band = (float(lower[-1]), float(upper[-1])) if len(lower) else (-tolerance, tolerance)
    change = _total_change(curve)

    broken = _first_nonfinite(layers, direction)
    if broken is not None:
        reason = _nonfinite_reason(broken, curve)
        return Finding(direction, "non-finite", growth, change, band, broken.label, reason)
    if len(curve.layers) < 2:
        reason = f"Fewer than two weight layers passed {_NAMES[direction]} on: there is no growth to judge."
        if not curve.layers and direction == "forward":
            reason += (
                " Weights used in functions (F.linear) are no modules: `probe(model, inputs)` and `SignalMonitor` see "
                "those too, unless they are inside compiled code, or the theory is left out."
            )
        return Finding(direction, "healthy", growth, change, band, None, reason)

    if _all_zero(curve):
        first = curve.layers[0].label
        return Finding(direction, "vanishing", growth, change, band, first, _all_zero_reason(curve))

    left = _leaves_for_good(curve.log10, lower, upper)
    trend = 0 if band[0] <= change <= band[1] else int(math.copysign(1, change))
    sign = left or trend
    exponent = _exponent(curve) if sign and abs(curve.log10[-1]) < LIMIT else None
    if exponent is not None:
        return Finding(direction, "healthy", growth, change, band, None, _power_reason(exponent, direction))
    if not sign:
        sound = Finding(direction, "healthy", growth, change, band, None, _healthy_reason(curve, growth, change))
        furthest = verdict_excursion.excursion(curve, lower, upper, LIMIT, layers)
        return sound if furthest is None else _excursion_finding(curve, sound, furthest, tolerance)
    state: State = "exploding" if sign > 0 else "vanishing"
    first = curve.layers[_first_bad(curve, tolerance)].label
    reason = _bad_reason(curve, growth, change, state, first, band)
    if _chance_could(curve, _drift(curve, steps), sigmas):
        reason += " Chance alone could do that at this depth: the layers are too narrow for it."
    return Finding(direction, state, growth, change, band, first, reason)


def _excursion_finding(curve: Profile, sound: Finding, furthest: int, tolerance: float) -> Finding:
    """The signal goes and comes back: judged by where it was furthest out, blamed on the way there."""
    value = float(curve.log10[furthest])
    gone = replace(curve, layers=curve.layers[: furthest + 1], log10=curve.log10[: furthest + 1])
    first, worst = curve.layers[min(_first_bad(gone, tolerance), furthest)].label, curve.layers[furthest]
    verb = "shrink" if value < 0 else "grow"
    reason = (
        f"{_NAMES[curve.direction].capitalize()} {verb} from {first} on by {abs(value):.1f} decades, to rms "
        f"{_scale(worst, curve.direction)} at {worst.label}, and come back before the end: the two ends look sound, "
        "the layers between do not work at a usable scale."
    )
    state: State = "vanishing" if value < 0 else "exploding"
    return replace(sound, state=state, first_bad_layer=first, reason=reason, furthest=worst.label, departure=value)


def _all_zero(curve: Profile) -> bool:
    """Whether nothing at all arrives at any weight layer: a curve without a scale, which bends nowhere."""
    signals = [layer.activation if curve.direction == "forward" else layer.gradient for layer in curve.layers]
    return all(moments is not None and moments.log10_rms == -math.inf for moments in signals)


def _band(curve: Profile, steps: dict[str, fluctuation.Step], tolerance: float, sigmas: float) -> tuple[Array, Array]:
    if not curve.layers:
        return np.empty(0), np.empty(0)
    drift = _drift(curve, steps)
    lower = np.maximum(-tolerance + drift.mean - sigmas * drift.std, -LIMIT)
    upper = np.minimum(tolerance + sigmas * drift.std, LIMIT)
    return lower, upper


def _drift(curve: Profile, steps: dict[str, fluctuation.Step]) -> fluctuation.Drift:
    own = [steps[layer.label] for layer in curve.layers]
    if curve.direction == "forward":
        return fluctuation.forward_drift(own)
    drift = fluctuation.backward_drift(own[::-1])
    return fluctuation.Drift(drift.mean[::-1], drift.std[::-1])


def _first_bad(curve: Profile, tolerance: float) -> int:
    if curve.direction == "backward":  # the first point is where the gradient started from, at the last layer
        return verdict_profile.change_point(curve.log10, tolerance)
    with_input = np.concatenate([[0.0], curve.log10])
    return max(verdict_profile.change_point(with_input, tolerance) - 1, 0)


def _chance_could(curve: Profile, drift: fluctuation.Drift, sigmas: float) -> bool:
    """Whether the walk of a sound net reaches this far, and the curve looks like a walk: many steps that scatter."""
    steps = np.diff(curve.log10)
    reached = drift.mean[-1] - sigmas * drift.std[-1] <= curve.log10[-1] <= drift.mean[-1] + sigmas * drift.std[-1]
    scatter = steps.std() > abs(steps.mean()) and np.abs(steps).max() < 0.4 * np.abs(curve.log10).max()
    return bool(reached and scatter)


def _total_change(curve: Profile) -> float:
    """The slope times the number of layers crossed: less at the mercy of the two end layers than their difference."""
    if len(curve.layers) < 2:
        return math.nan
    points = [
        (layer.depth, float(value))
        for layer, value in zip(curve.layers, curve.log10, strict=True)
        if trusted_log10(layer, curve.direction) is not None
    ]
    growth = growth_of(points, curve.direction)
    if growth is None or growth <= 0:
        return float(curve.log10[-1])
    return math.log10(growth) * (len(curve.layers) - 1)


def _leaves_for_good(log10: Array, lower: Array, upper: Array) -> int:
    """−1 or 1 where the last layers of the signal's way are all below or above the band, else 0.

    "All" is the last tenth and at least two: one odd layer at the very end is the output layer's own affair.
    """
    last = max(2, math.ceil(len(log10) / 10))
    if len(log10) < 2:
        return 0
    if (log10[-last:] < lower[-last:]).all():
        return -1
    if (log10[-last:] > upper[-last:]).all():
        return 1
    return 0


def _exponent(curve: Profile) -> float | None:
    position = np.arange(1, len(curve.layers) + 1, dtype=np.float64)
    return verdict_profile.power_law(curve.log10, position if curve.direction == "forward" else position[::-1])


def _first_nonfinite(layers: Sequence[LayerSignal], direction: Direction) -> LayerSignal | None:
    for layer in layers if direction == "forward" else reversed(layers):
        moments = layer.activation if direction == "forward" else layer.gradient
        if moments is not None and moments.nonfinite:
            return layer
    return None


def fluctuation_steps(layers: Sequence[LayerSignal]) -> dict[str, fluctuation.Step]:
    """What each weight layer contributes to the fluctuation, by label.

    The activation's constants are integrated at the scale that was measured before it. Where no activation module
    followed it may have been a function call, which leaves no record: ReLU's constants are taken, the largest of the
    usual ones, unless the layers pass on exactly what their weights make of it, as nothing but the identity does.
    """
    cache: _Cache = {}
    steps: dict[str, fluctuation.Step] = {}
    heads = verdict_profile.spine(layers)
    unseen = _IDENTITY if _nothing_between(heads) else fluctuation.RELU_KURTOSIS
    for head, following in itertools.zip_longest(heads, heads[1:]):
        end = following.order if following is not None else math.inf
        group = [layer for layer in layers if head.order < layer.order < end]
        width = max(_width(head), 1)
        normalized = any(layer.role == "normalization" for layer in group)
        moments = None
        before = head
        for layer in group:
            if layer.role == "activation" and layer.module is not None:
                moments = _integrals(layer, before, cache)
                break
            before = layer
        if moments is None or not math.isfinite(moments.kurtosis) or not math.isfinite(moments.slope_kurtosis):
            steps[head.label] = fluctuation.Step(width, unseen, unseen, response=0.0 if normalized else 1.0)
        else:
            steps[head.label] = fluctuation.Step(
                width,
                moments.kurtosis,
                moments.slope_kurtosis,
                0.0 if normalized else moments.response,
                0.0 if normalized else moments.slope_response,
            )
    return steps


def _nothing_between(heads: Sequence[LayerSignal]) -> bool:
    """Whether rms(z) = √(n E w²) · rms(z before), to 5 % in the median: no function takes its share."""
    shares = []
    for before, head in itertools.pairwise(heads):
        if head.weight is not None and head.fan_in:
            gain = head.weight.log10_rms + 0.5 * math.log10(head.fan_in)
            shares.append(head.activation.log10_rms - before.activation.log10_rms - gain)
    known = [share for share in shares if math.isfinite(share)]
    return bool(known) and abs(float(np.median(known))) < math.log10(1.05)


def _width(layer: LayerSignal) -> int:
    """Units that draw their own weights: the last axis, of a convolution the channels."""
    convolution = "Conv" in layer.kind and len(layer.shape) > 2
    return layer.shape[1] if convolution else layer.shape[-1]


def _integrals(layer: LayerSignal, before: LayerSignal, cache: _Cache) -> ActivationMoments | None:
    mean, std = before.activation.mean, before.activation.std
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0) or layer.module is None:
        return None
    # A twentieth of a decade in scale moves these constants by less than they matter.
    scale, offset = round(20 * math.log10(std)), round(4 * mean / std)
    key = (layer.kind, repr(layer.module), scale, offset)
    of_any_scale = (layer.kind, repr(layer.module), None, offset)
    for known in (key, of_any_scale):
        if known in cache:
            return cache[known]
    function = as_elementwise(layer.module)
    if function is None:
        cache[of_any_scale] = None
    elif is_homogeneous(function):
        cache[of_any_scale] = activation_moments(function, offset / 4, 1.0)
    else:
        cache[key] = activation_moments(function, mean, std**2)
    return cache.get(key, cache.get(of_any_scale))


def _scale(layer: LayerSignal, direction: Direction) -> str:
    moments = layer.activation if direction == "forward" else layer.gradient
    assert moments is not None
    if not math.isfinite(moments.log10_rms):
        return "0"
    # A mantissa and an exponent of our own: the rms itself may be below what a float can print.
    exponent = math.floor(moments.log10_rms)
    return f"{10 ** (moments.log10_rms - exponent):.1f}e{exponent:+03d}"


def _healthy_reason(curve: Profile, growth: float | None, change: float) -> str:
    name = _NAMES[curve.direction].capitalize()
    if growth is not None and abs(growth - 1) < 0.05:
        return f"{name} keep their scale: {_over(curve, growth, change)}."
    return f"{name} change little enough over this depth: {_over(curve, growth, change)}."


def _over(curve: Profile, growth: float | None, change: float) -> str:
    """The rms per layer; and the norm, which gradients are judged by, where maps or widths change enough to tell."""
    crossed = len(curve.layers) - 1
    over = f"per layer over {len(curve.layers)} layers"
    if not growth or not crossed or abs(math.log10(growth) * crossed - change) < 0.5:
        return f"×{_factor(growth)} {over}"
    norm = _factor(10 ** (change / crossed))
    return f"the norm ×{norm} {over} (the rms ×{_factor(growth)}, where the number of values changes)"


def _power_reason(exponent: float, direction: Direction) -> str:
    return (
        f"{_NAMES[direction].capitalize()} follow a power of depth (rms ∝ l^{exponent:.2f} with the number l of the "
        "layer), not an exponential: the change slows down from layer to layer, and more depth makes it little worse."
    )


def _bad_reason(
    curve: Profile,
    growth: float | None,
    change: float,
    state: State,
    first: str,
    band: tuple[float, float],
) -> str:
    direction = curve.direction
    verb = "shrink" if state == "vanishing" else "grow"
    text = (
        f"{_NAMES[direction].capitalize()} {verb} {_over(curve, growth, change)}, rms "
        f"{_scale(curve.layers[0], direction)} at {curve.layers[0].label} to {_scale(curve.layers[-1], direction)} at "
        f"{curve.layers[-1].label}, from {first} on; chance at these widths explains factors of 10^{band[0]:.1f} to "
        f"10^{band[1]:.1f} over the net."
    )
    steps = np.diff(curve.log10)
    largest = int(np.argmax(np.abs(steps)))
    if len(steps) > 3 and abs(steps[largest]) > 0.4 * abs(change):
        at = curve.layers[largest + 1].label
        text += f" Most of it in one step: by {abs(steps[largest]):.1f} decades on the way to {at}."
    return text


def _all_zero_reason(curve: Profile) -> str:
    name = _NAMES[curve.direction].capitalize()
    return (
        f"{name} are exactly 0 at all {len(curve.layers)} weight layers: nothing arrives, so nothing is learned. They "
        "have underflowed, or a factor of 0 stands before the first of them (weights, mask or loss)."
    )


def _nonfinite_reason(broken: LayerSignal, curve: Profile) -> str:
    direction = curve.direction
    moments = broken.activation if direction == "forward" else broken.gradient
    assert moments is not None
    text = f"{_NAMES[direction].capitalize()} are first infinite or NaN at {broken.label}: {moments.nonfinite} values."
    finite = [layer for layer in curve.layers if (layer.order < broken.order) == (direction == "forward")]
    if finite and finite[-1] is not broken and math.isfinite(curve.log10.max()) and curve.log10.max() > LIMIT:
        text += f" They had grown to rms {_scale(finite[-1], direction)} at {finite[-1].label} before: an overflow."
    return text


def _factor(growth: float | None) -> str:
    return "?" if growth is None else f"{growth:.3g}"
