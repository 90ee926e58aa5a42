"""Skip connections without normalisation: each block adds to the stream, and nothing takes it away.

x + f(x) has the second moment q (1 + β + 2 c √β), β the branch's share E f² / E x² and c the correlation of x and f(x)
over the units (0 behind a zero-mean weight; positive behind ReLU, whose outputs all have a mean above 0). Over N blocks
that is a product: with β = 1 and c = 0 it doubles in each. Scaling the last weight of a branch by k makes it
1 + k² β + 2 c k √β; at k = 1/√N, β = 1 and c = 0 the product is (1 + 1/N)^N, below e however many blocks there are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torchnotes.diagnostics.prescription_blame import gain_of, ideal_gain
from torchnotes.diagnostics.prescription_outliers import STANDS_OUT
from torchnotes.diagnostics.prescription_record import CURES, Prescription
from torchnotes.diagnostics.records import Finding, LayerSignal
from torchnotes.diagnostics.theory_quadrature import as_elementwise

BUDGET = 2.0
"""What all blocks may add to ln q where their outputs are correlated with the stream: a factor e on the rms."""


@dataclass
class _Branch:
    """A block with a skip connection.

    Attributes:
        block: its record.
        weights: its weight layers.
        nominal: β from the gains of the weights and the activations between them; None where one is not known.
        share: β as measured; None where what comes in was not.
        correlation: c as measured; None likewise.
        growth: what the block adds to log₁₀ rms, measured or by β, whichever is more.
        mends: what brings weights that stand out back to the middle, by the module's path.
    """

    block: LayerSignal
    weights: list[LayerSignal]
    nominal: float | None
    share: float | None
    correlation: float | None
    growth: float
    mends: dict[str, float]

    @property
    def beta(self) -> float:
        """β once the weights are mended; at least nominal: a large stream saturates a tanh and hides its share."""
        mended = math.prod(self.mends.values()) ** 2
        known = [] if self.nominal is None else [self.nominal * mended]
        if self.share is not None and not (self.mends and known):
            known.append(self.share * mended)
        return max(known, default=1.0)


def of_residual(layers: Sequence[LayerSignal], finding: Finding) -> Prescription | None:
    """Blame the sums, and weights that stand out in the branches, and scale the last weight of each branch.

    Blamed where most blocks are sums of what comes in and a branch, without normalisation, and what the branches add
    explains at least half of the change.

    Args:
        layers: the records that were judged.
        finding: what one direction shows.
    """
    branches = _branches(layers)
    known = [abs(branch.correlation) for branch in branches if branch.correlation is not None]
    if (
        finding.state != "exploding"
        or len(branches) < 2
        or 2 * len(known) < len(branches)
        or statistics.median(known) > 0.9
    ):
        return None
    if sum(branch.growth for branch in branches) < 0.5 * min(finding.change, 300.0):
        return None
    _mend(branches)
    number = len(branches)
    usual = statistics.median(branch.correlation for branch in branches if branch.correlation is not None)
    scales = [_scale(branch, number, usual) for branch in branches]
    factors: dict[str, float] = {}
    for branch, scale in zip(branches, scales, strict=True):
        for name, factor in branch.mends.items():
            factors.setdefault(name, factor)
        last = branch.weights[-1].name
        if last not in factors or last in branch.mends:
            factors[last] = branch.mends.get(last, 1.0) * scale
    mended = {name: factor for branch in branches for name, factor in branch.mends.items()}
    measured = [branch.block.activation.log10_rms for branch in branches]
    text = _mended(mended) + (
        f"Each of {number} skip connections adds the variance of its branch, and nothing takes it away "
        f"(×{10 ** ((measured[-1] - measured[0]) / (number - 1)):.3g} per block); multiply the last weights of each "
        f"branch by {_range(scales, number)} ({CURES}), or normalise at the head of each branch."
    )
    return Prescription("weight scale" if mended else "missing normalisation", text, tuple(factors), factors)


def _branches(layers: Sequence[LayerSignal]) -> list[_Branch]:
    """The innermost blocks that hold a weight layer and no normalisation, in order."""
    found: list[_Branch] = []
    start = -1
    for block in layers:
        if block.role != "block" or not math.isfinite(block.activation.log10_rms):
            continue
        prefix = f"{block.name}." if block.name else ""
        inside = [layer for layer in layers if start < layer.order < block.order and layer.name.startswith(prefix)]
        weights = [layer for layer in inside if layer.role == "weight" and (gain_of(layer) or 0) > 0]
        if weights and not any(layer.role in ("block", "normalization") for layer in inside):
            entering = _entering(layers, inside)
            share = correlation = None
            nominal, growth = _nominal(inside, weights), 0.0
            if entering is not None and math.isfinite(inside[-1].activation.log10_rms):
                share = 10 ** (2 * (inside[-1].activation.log10_rms - entering))
                total = 10 ** (2 * (block.activation.log10_rms - entering))
                growth = block.activation.log10_rms - entering
                correlation = (total - 1 - share) / (2 * math.sqrt(share)) if share > 0 else None
            growth = max(growth, 0.5 * math.log10(1 + (nominal or 0.0)))
            found.append(_Branch(block, weights, nominal, share, correlation, growth, {}))
        start = block.order
    return found


def _entering(layers: Sequence[LayerSignal], inside: Sequence[LayerSignal]) -> float | None:
    """log₁₀ rms of what comes into a block: of the record before it, or what its first weight must have been given."""
    first = inside[0]
    before = [layer for layer in layers if layer.order < first.order]
    if before:
        value = before[-1].activation.log10_rms
    elif first.role == "weight":
        value = first.activation.log10_rms - math.log10(gain_of(first))
    else:
        return None
    return value if math.isfinite(value) else None


def _nominal(inside: Sequence[LayerSignal], weights: Sequence[LayerSignal]) -> float | None:
    gains = [gain_of(layer) for layer in weights]
    ideals = []
    for layer in inside:
        if layer.role == "activation":
            function = None if layer.module is None else as_elementwise(layer.module)
            ideals.append(None if function is None else ideal_gain(function))
    if any(ideal is None for ideal in ideals) or (not ideals and len(weights) > 1):
        return None
    return math.prod(gain**2 for gain in gains) / math.prod(ideal**2 for ideal in ideals if ideal is not None)


def _mend(branches: Sequence[_Branch]) -> None:
    """Bring weights that are too large among those at the same place in their branch back to the middle of them."""
    places: dict[int, list[tuple[_Branch, LayerSignal]]] = {}
    for branch in branches:
        for place, layer in enumerate(reversed(branch.weights)):
            places.setdefault(place, []).append((branch, layer))
    for at_place in places.values():
        middle = statistics.median(math.log10(gain_of(layer)) for _, layer in at_place)
        off = [(branch, layer) for branch, layer in at_place if math.log10(gain_of(layer)) - middle > STANDS_OUT]
        if 4 * len(off) <= len(at_place):
            for branch, layer in off:
                branch.mends[layer.name] = 10**middle / gain_of(layer)


def _scale(branch: _Branch, number: int, usual: float) -> float:
    """k, at most 1."""
    beta = branch.beta
    correlation = usual if branch.correlation is None or branch.mends else branch.correlation
    alone = 1 / math.sqrt(number) if 0.5 < beta < 2 else 1 / math.sqrt(number * beta)
    if correlation < 0.15:
        return min(alone, 1.0)
    # k² β + 2 c k √β = budget / N, solved for k √β.
    both = math.sqrt(correlation**2 + BUDGET / number) - correlation
    return min(alone, both / math.sqrt(beta), 1.0)


def _mended(mended: dict[str, float]) -> str:
    if not mended:
        return ""
    names = ", ".join(f"`{name}`" for name in list(mended)[:4]) + (" and others" if len(mended) > 4 else "")
    times = 1 / statistics.median(mended.values())
    return f"The weights of {names} are {times:.3g} times as large as those at the same place of other branches. "


def _range(scales: Sequence[float], number: int) -> str:
    low, high = min(scales), max(scales)
    if all(math.isclose(scale, number**-0.5) for scale in scales):
        return f"1/√{number}"
    return f"{low:.2g}" if high < 1.05 * low else f"{low:.2g} to {high:.2g}"
