"""The tables of a run, and what they say in plain words."""

from __future__ import annotations

import math
from itertools import pairwise

from experiments.console import Claim, Table
from experiments.optimizers.critical import KNOWN
from experiments.optimizers.measuring import FAR, FURTHER, JITTER, RATE, Results
from experiments.optimizers.rules import CURVATURE, RULES

QUICK = "A quick run is too short to tell."


def _steps(count: int | None) -> str:
    return "stays" if count is None else str(count)


def tables(results: Results) -> list[Table]:
    """One row a rule; and the share of minima by dimension."""
    rules = Table(
        "Steps each rule takes",
        ("rule", "bowl: α", "bowl", "plateau", "saddle", "on it", "with noise"),
        f"Bowl: until the height stays below 1/1000 of the first, at the best rate α. Plateau: from w = {FAR:g} to 2. "
        f"Saddle: from 1e-6 beside it, from exactly on it, and from there with noise of {JITTER:g} in the gradient; "
        f"plateau and saddle at rate {RATE:g}.",
    )
    digits = Table(
        "The digits",
        ("rule", "best rate", "training cost", "dev images wrong"),
        f"In the last of {len(next(iter(results.digits.values())).costs)} epochs, means over the seeds.",
    )
    for name in RULES:
        rate, steps = results.bowl.get(name, (math.nan, 0))
        walks = (results.plateau[name], *results.saddle[name])
        rules.rows.append((name, f"{rate:g}", str(steps), *map(_steps, walks)))
        training = results.digits[name]
        digits.rows.append((name, f"{training.rate:g}", f"{training.costs[-1]:.4f}", f"{training.error:.1%}"))
    minima = Table(
        "How many critical points are minima",
        ("of what", "dimension", "share", "known"),
        f"Of {results.matrices:,} random symmetric matrices those with only positive eigenvalues; of the critical "
        "points found of tanh nets on the two moons those without a direction that leads down.",
    )
    for dimension, share in results.positive.items():
        known = f"{KNOWN[dimension]:.5f}" if dimension in KNOWN else ""
        minima.rows.append(("random matrices", str(dimension), f"{share:.5f}", known))
    minima.rows.append(None)
    for size, (found, lowest) in results.nets.items():
        minima.rows.append(("nets on the moons", str(size), f"{lowest} of {found}", ""))
    return [rules, digits, minima]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [*_bowl(results), *_plateau(results), *_saddle(results), *_digits(results), *_forms(results)]


def _bowl(results: Results) -> list[Claim]:
    plain, damped = results.swing
    bowl, limits, first = results.bowl, results.limits, results.first
    close = all(math.isclose(found, known, rel_tol=0.1) for found, known in limits.values())
    complete = results.judged and len(bowl) == len(RULES)
    shown = ", ".join(f"{name} {steps} at rate {rate:g}" for name, (rate, steps) in bowl.items())
    return [
        Claim(
            "Momentum swings less across the bowl than gradient descent at the same rate.",
            damped < plain,
            f"Way across, Σ|Δy|, at rate 0.038: {damped:.1f} against {plain:.1f}.",
        ),
        Claim(
            "So it bears larger rates: up to 2(1 + β)/((1 − β)λ) instead of 2/λ, at curvature λ.",
            close and limits["momentum"][0] > 2 * limits["gradient descent"][0],
            f"Largest stable rates {limits['gradient descent'][0]:.4f} and {limits['momentum'][0]:.3f}; known "
            f"{limits['gradient descent'][1]:.4f} and {limits['momentum'][1]:.3f}.",
        ),
        Claim(
            "Momentum, RMSprop and Adam are sooner at the bottom of the bowl than gradient descent.",
            all(bowl[name][1] < bowl["gradient descent"][1] for name in RULES if name != "gradient descent")
            if complete
            else None,
            f"Steps until they stay there, each at its best rate: {shown}." if complete else QUICK,
        ),
        Claim(
            "RMSprop divides the steep direction's larger slopes away.",
            math.isclose(first["RMSprop"], 1, rel_tol=1e-3)
            and math.isclose(first["gradient descent"], CURVATURE, rel_tol=1e-9),
            f"Its first step goes {first['RMSprop']:.3f} times as far across as along; that of gradient descent "
            f"{first['gradient descent']:.0f} times.",
        ),
    ]


def _plateau(results: Results) -> list[Claim]:
    steps, known = results.plateau, results.plateau_known
    plain = steps["gradient descent"]
    fast = [steps[name] for name in ("RMSprop", "Adam")]
    left = [count for count in fast if count is not None]
    slow = plain is not None and math.isclose(plain, known, rel_tol=0.02)
    least = known if plain is None else plain
    outside, inside = ([results.further[name, form] for name in ("RMSprop", "Adam")] for form in ("outside", "inside"))
    return [
        Claim(
            "A plateau slows learning down: gradient descent takes as long as the slope e⁻ʷ there makes it.",
            slow if results.judged else None,
            f"From w = {FAR:g} at rate {RATE:g} {_steps(plain)} steps; the integral gives {known:.0f}."
            if results.judged
            else QUICK,
        ),
        Claim(
            "RMSprop and Adam leave it soon, since they divide the slope by its own size.",
            len(left) == 2 and max(left) < 0.1 * least,
            f"After {_steps(fast[0])} and {_steps(fast[1])} steps; momentum, in the notes' form an average of equal "
            f"slopes, needs {_steps(steps['momentum'])}.",
        ),
        Claim(
            "Inside the root or outside it, ε = 1e-8 makes no difference there either.",
            inside == outside,
            f"Further out, from w = {FURTHER:g}, where the slope is 6e-6, RMSprop and Adam need {_steps(outside[0])} "
            f"and {_steps(outside[1])} steps with ε outside the root, {_steps(inside[0])} and {_steps(inside[1])} with "
            "ε inside, where it adds √ε = 1e-4.",
        ),
    ]


def _saddle(results: Results) -> list[Claim]:
    beside, on, noisy = zip(*results.saddle.values(), strict=True)
    known = math.log(0.5 / 1e-6) / math.log(1 + RATE)
    plain = beside[0]
    positive, nets = results.positive, results.nets
    falls = all(a > b for a, b in pairwise(list(positive.values())[:5]))
    error = {n: math.sqrt(KNOWN[n] * (1 - KNOWN[n]) / max(results.matrices, 1)) for n in KNOWN}
    exact = all(abs(positive[n] - KNOWN[n]) <= 4 * error[n] for n in KNOWN)
    last = max(positive)
    saddles = {size: 1 - lowest / max(found, 1) for size, (found, lowest) in nets.items()}
    return [
        Claim(
            "A saddle is left by chance disturbances: exactly on it every rule stays, with noise every rule leaves.",
            all(count is None for count in on) and all(count is not None for count in noisy),
            f"With the noise of a mini-batch they leave after {', '.join(map(_steps, noisy))} steps; from 1e-6 beside "
            f"it after {', '.join(map(_steps, beside))} ({', '.join(RULES)}). Gradient descent: known "
            f"{known:.0f}, {_steps(plain)} measured.",
        ),
        Claim(
            "In many dimensions a critical point is far more often a saddle than a minimum.",
            falls and exact and positive[last] < 0.01 if results.judged else falls and exact,
            f"All eigenvalues of a random symmetric matrix are positive in {positive[1]:.1%} at dimension 1, "
            f"{positive[2]:.1%} at 2, {positive[3]:.2%} at 3 ({'as' if exact else 'not as'} known), and in "
            f"{positive[last] * results.matrices:.0f} of {results.matrices:,} at {last}.",
        ),
        Claim(
            "So it is with the costs of nets: most critical points are saddles, the more so with more parameters.",
            all(share > 0.5 for share in saddles.values())
            and list(saddles.values())[-1] >= next(iter(saddles.values()))
            if results.judged
            else None,
            "Saddles among the critical points found: "
            + ", ".join(f"{share:.0%} ({size} parameters)" for size, share in saddles.items())
            + ".",
        ),
    ]


def _digits(results: Results) -> list[Claim]:
    costs = {name: training.costs[-1] for name, training in results.digits.items()}
    plain = costs["gradient descent"]
    return [
        Claim(
            "On the digits momentum, RMSprop and Adam get further than gradient descent in the same epochs.",
            all(cost < plain for name, cost in costs.items() if name != "gradient descent") if results.judged else None,
            "Training cost in the last epoch, each at the best rate of a grid: "
            + ", ".join(f"{name} {cost:.4f} (α = {results.digits[name].rate:g})" for name, cost in costs.items())
            + ".",
        )
    ]


def _forms(results: Results) -> list[Claim]:
    right, wrong, without = results.first_adam
    outside, inside = results.epsilon_costs
    return [
        Claim(
            "Momentum with (1 − β) at rate α walks the path of momentum without it at rate (1 − β)α.",
            results.conversion < 1e-3,
            f"On the digits the weights are {results.conversion:.0e} of the way gone apart: float32's round-off.",
        ),
        Claim(
            "On the digits the place of ε changes the cost by less than a tenth.",
            abs(inside / outside - 1) < 0.1,
            f"Trained with Adam the cost is {outside:.4f} with ε outside the root, {inside:.4f} with ε inside; single "
            f"weights, whose slope is hardly above ε, are up to {results.epsilon:.0%} of the way gone apart.",
        ),
        Claim(
            "S must be corrected with β₂: the misprint with β₁ makes Adam's first step ten times as long.",
            math.isclose(right, 1, rel_tol=1e-6) and math.isclose(wrong, 10, rel_tol=1e-9),
            f"In units of α: {right:.4f} with β₂, {wrong:.4f} with β₁, {without:.4f} without any correction.",
        ),
    ]
