"""From a verdict to its cause and its cure: in words, and as factors that can be applied to the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchnotes.diagnostics.prescription_apply import AppliedPrescription as AppliedPrescription
from torchnotes.diagnostics.prescription_apply import apply_prescription as apply_prescription
from torchnotes.diagnostics.prescription_blame import Section, is_drawn, sections
from torchnotes.diagnostics.prescription_outliers import of_outliers
from torchnotes.diagnostics.prescription_record import CURES, Prescription
from torchnotes.diagnostics.prescription_residual import of_residual
from torchnotes.diagnostics.records import Finding, LayerSignal, Verdict


def prescribe(layers: Sequence[LayerSignal], finding: Finding) -> Prescription | None:
    """Find what made one direction bad.

    The weights are to blame where their gains, held against those that would keep the signal through the activation
    and the dropout before them, explain at least half of the change; else what stands between them is.

    Args:
        layers: the records that were judged.
        finding: the direction's finding; see :func:`torchnotes.diagnostics.verdict.judge`.

    Returns:
        Cause and cure; None for a healthy finding.
    """
    if finding.state == "healthy":
        return None
    chain = sections(layers)
    if finding.state == "non-finite":
        return _of_nonfinite(layers, chain, finding)
    for section in chain:
        if section.gain == 0:
            return _of_zero_weights(section)
    if (found := of_outliers(chain, finding) or of_residual(layers, finding)) is not None:
        return found
    region = _region(chain, finding)
    sign = 1 if finding.state == "exploding" else -1
    if finding.furthest is not None:
        return _of_excursion(chain, region, finding) or _of_the_rest(region, layers, finding)
    return _of_scale(region, finding, sign) or _of_the_rest(region, layers, finding)


def prescriptions(layers: Sequence[LayerSignal], verdict: Verdict) -> tuple[Prescription, ...]:
    """Cause and cure of each direction that is not healthy, forward first."""
    found = (prescribe(layers, finding) for finding in verdict.findings)
    return tuple(prescription for prescription in found if prescription is not None)


def _region(chain: list[Section], finding: Finding) -> list[Section]:
    """The layers the signal passes while it is going wrong; at least the first bad one."""
    labels = [section.head.label for section in chain]
    if finding.first_bad_layer not in labels:
        return chain
    index = labels.index(finding.first_bad_layer)
    if finding.furthest in labels:
        ends = sorted((index, labels.index(finding.furthest)))
        return chain[ends[0] : ends[1] + 1]
    # The gradient at the output of layer l has come through the weights of layer l + 1.
    return chain[index:] if finding.direction == "forward" else chain[1 : index + 2] or chain


def _of_scale(region: list[Section], finding: Finding, sign: int) -> Prescription | None:
    """Weights, or dropout that the weights do not make up for; None where they explain less than half."""
    off = [section for section in region if abs(section.excess) > 0.02]
    total = sum(section.excess for section in off)
    if not off or sign * total < 0.5 * min(abs(finding.change), 300.0):
        return None
    by_dropout = sum(-0.5 * math.log10(section.keep) for section in off)
    factors = _factors(off)
    labels = tuple(section.head.label for section in off)
    if sign > 0 and by_dropout > 0.8 * total:
        keep = min(section.keep for section in off)
        text = (
            f"From `{labels[0]}` on: dropout that keeps {keep:.3g} multiplies the second moment by {1 / keep:.3g} in "
            f"each layer, and the weights are scaled as if it were not there; multiply them by √{keep:.3g} "
            f"({CURES}): the critical variance after dropout is {keep:.3g} of that without."
        )
        return Prescription("dropout", text, labels, factors)
    return Prescription("weight scale", _scale_text(off, finding), labels, factors)


def _of_excursion(chain: list[Section], region: list[Section], finding: Finding) -> Prescription | None:
    """Weights that take the signal away, and those that bring it back: both are scaled, or it would run off at once."""
    off = [section for section in chain if abs(section.excess) > 0.02]
    there = sum(section.excess for section in region)
    if abs(there) < 0.5 * min(abs(finding.departure), 300.0):
        return None
    sign = math.copysign(1.0, there)
    away = [section for section in off if section.excess * sign > 0.1]
    back = [section for section in off if section.excess * sign < -0.1]
    if not away:
        return None
    text = (
        f"From `{away[0].head.label}` on the weights of {_layers(away)} are too {'small' if sign < 0 else 'large'} "
        f"(together by {abs(sum(section.excess for section in away)):.1f} decades)"
    )
    if back:
        text += (
            f", and {_layers(back)} from `{back[0].head.label}` on {'makes' if len(back) == 1 else 'make'} up for it"
        )
    text += f"; bring each to the scale that keeps the signal ({CURES}){_or_drawn(away + back)}."
    return Prescription("weight scale", text, tuple(section.head.label for section in away), _factors(off))


def _or_drawn(found: Sequence[Section]) -> str:
    """Offers what `initialize_` does, where it does it."""
    return ", or `initialize_(model)`" if all(is_drawn(section.head) for section in found) else ""


def _layers(found: Sequence[Section]) -> str:
    return f"{len(found)} layer{'' if len(found) == 1 else 's'}"


def _scale_text(off: list[Section], finding: Finding) -> str:
    first = off[0]
    effects = [10 ** (2 * section.excess) for section in off]
    assert first.target is not None
    if len(off) == 1 or max(abs(s.excess) for s in off) > 0.8 * sum(abs(s.excess) for s in off):
        worst = max(off, key=lambda section: abs(section.excess))
        assert worst.target is not None
        return (
            f"At `{worst.head.label}`: its weights are {worst.gain / worst.target:.3g} times as large as keeps the "
            f"signal; multiply them by {_nice(worst.target / worst.gain)} ({CURES}){_or_drawn([worst])}."
        )
    geometric = math.exp(sum(map(math.log, effects)) / len(effects))
    kinds = {section.activation for section in off if section.activation is not None}
    around = f" around {' and '.join(sorted(kinds))}" if kinds else ""
    # Forward the gains say what happens in these layers; backward a function with flat ends has its own say.
    forward = finding.direction == "forward" or finding.growth is None
    effect = _effect(geometric if forward or finding.growth is None else finding.growth**2)
    return (
        f"From `{first.head.label}` on ({len(off)} layers): weights at variance {_variance(off)}{around} {effect} the "
        f"second moment of the {'signal' if forward else 'gradient'} in each layer; multiply them by "
        f"{_nice(1 / math.sqrt(geometric))} ({CURES}){_or_drawn(off)}."
    )


def _of_the_rest(region: list[Section], layers: Sequence[LayerSignal], finding: Finding) -> Prescription:
    labels = tuple(section.head.label for section in region)
    for look in (_of_dead, _of_saturated, _of_normalisation, _of_hopeless):
        found = look(region, finding)
        if found is not None:
            return found
    if "too narrow" in finding.reason:
        return Prescription("width", "Make the layers wider, or use fewer of them, or add skip connections.", labels)
    text = (
        f"From `{finding.first_bad_layer}` on: neither weights nor dropout explain it; `print(expect(model, inputs))` "
        "shows each step beside what it should do"
    )
    calibrated = all(is_drawn(section.head) for section in region)
    text += ", and `init.calibrate_(model, batch)` sets the scale of every layer from data." if calibrated else "."
    return Prescription("unknown", text, labels)


def _of_dead(region: list[Section], finding: Finding) -> Prescription | None:
    dead = next((section for section in region if section.dead > 0.999), None)
    if dead is None or finding.state != "vanishing":
        return None
    how = "`initialize_`" if is_drawn(dead.head) else "at variance 2/n before ReLU"
    text = (
        f"The {dead.activation} before `{dead.head.label}` is dead: it is zero for every unit and sample. Draw the "
        f"layer before it anew ({how}), and lower the learning rate if training killed it."
    )
    return Prescription("dead layer", text, (dead.head.label,))


def _of_saturated(region: list[Section], finding: Finding) -> Prescription | None:
    flat = [section for section in region if (section.saturated or 0.0) > 0.5]
    if not flat or finding.state != "vanishing":
        return None
    text = (
        f"From `{flat[0].head.label}` on: more than half of the {flat[0].activation} values before it lie on its flat "
        "ends, where no gradient passes; make the weights or the inputs smaller"
    )
    text += ": `init.calibrate_(model, batch)`." if all(is_drawn(section.head) for section in flat) else "."
    return Prescription("saturation", text, tuple(section.head.label for section in flat))


def _of_hopeless(region: list[Section], finding: Finding) -> Prescription | None:
    hopeless = [section for section in region if section.activation is not None and section.ideal is None]
    if not hopeless or finding.direction == "forward":
        return None
    text = (
        f"From `{region[0].head.label}` on: {hopeless[0].activation} passes on too little of the gradient "
        f"(×{finding.growth or math.nan:.3g} per layer), and no scale of the weights keeps both signal and gradient "
        "through it. Use tanh with variance 1/n or ReLU with 2/n, or normalise before it and add skip connections."
    )
    return Prescription("activation", text, tuple(section.head.label for section in region))


def _of_normalisation(region: list[Section], finding: Finding) -> Prescription | None:
    if finding.state != "exploding" or sum(section.normalized for section in region) <= len(region) / 2:
        return None
    text = (
        f"From `{region[0].head.label}` on: normalisation after every layer keeps the activations and multiplies the "
        f"gradient by {finding.growth or math.nan:.3g} in each (with ReLU by √(π/(π−1)) = 1.21), whatever the scale of "
        "the weights. Add skip connections around the normalised layers, or normalise fewer of them."
    )
    labels = tuple(section.head.label for section in region)
    return Prescription("normalisation without skip connections", text, labels)


def _of_zero_weights(section: Section) -> Prescription:
    label = section.head.label
    text = (
        f"The weights of `{label}` are all zero: nothing passes, forward or backward, and its units would stay alike "
        "for ever. Draw them at random: "
    )
    text += "`initialize_(model)`." if is_drawn(section.head) else "at variance 2/n before ReLU, 1/n else."
    return Prescription("zero weights", text, (label,))


def _of_nonfinite(layers: Sequence[LayerSignal], chain: list[Section], finding: Finding) -> Prescription:
    origin = next((layer for layer in layers if layer.label == finding.first_bad_layer), None)
    label = finding.first_bad_layer or "?"
    if origin is not None and origin.weight is not None and origin.weight.nonfinite:
        text = (
            f"The weights of `{label}` hold {origin.weight.nonfinite} infinities or NaNs. Go back to a checkpoint from "
            "before, and lower the learning rate or clip the gradients"
        )
        text += ": `initialize_(model)` starts afresh." if is_drawn(origin) else "."
        return Prescription("non-finite weights", text, (label,))
    if "an overflow" in finding.reason:
        off = [section for section in chain if section.excess > 0.02]
        if sum(section.excess for section in off) > 1:
            return Prescription(
                "weight scale",
                _scale_text(off, finding),
                tuple(section.head.label for section in off),
                _factors(off),
            )
    what = "from finite inputs" if finding.direction == "forward" else "on the way back"
    text = (
        f"`{label}` is where infinities or NaNs begin, {what}: look there for a division, logarithm or root at zero, "
        "or an exponential of a large number; `torch.autograd.set_detect_anomaly(True)` names the operation."
    )
    return Prescription("non-finite value", text, (label,))


def _factors(off: list[Section]) -> dict[str, float]:
    """One factor a module; where it was called more than once, the mean of what each call asks for."""
    wanted: dict[str, list[float]] = {}
    for section in off:
        wanted.setdefault(section.head.name, []).append(-section.excess)
    return {name: 10 ** (sum(logs) / len(logs)) for name, logs in wanted.items()}


def _variance(off: list[Section]) -> str:
    values = sorted(section.gain**2 for section in off)
    middle = values[len(values) // 2]
    nearest = min((0.5, 1.0, 2.0), key=lambda value: abs(math.log(middle / value)))
    return f"{nearest:g}/n" if abs(middle / nearest - 1) < 0.05 else f"{middle:.3g}/n"


def _effect(square: float) -> str:
    for value, word in ((0.5, "halve"), (2.0, "double")):
        if abs(square / value - 1) < 0.05:
            return word
    return f"apply a factor of {square:.3g} to"


def _nice(factor: float) -> str:
    for value, word in ((math.sqrt(2), "√2"), (math.sqrt(0.5), "1/√2")):
        if abs(factor / value - 1) < 0.025:
            return word
    return f"{factor:.3g}"
