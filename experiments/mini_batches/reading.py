"""The tables of a run, its figures, and what they say in plain words."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from experiments.console import Claim, Table
from experiments.mini_batches.measuring import PATH_RATE, PICTURE_RATE, Results
from torchnotes.data import default_batch_size
from torchnotes.training import check_monotonic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {1: "tab:red", 16: "tab:orange", 64: "tab:green", 128: "tab:olive", 256: "tab:cyan", 512: "tab:blue"}
TIE = 1.2  # times the fastest one's seconds: within that two sizes are equally good
FASTER = 0.02  # of the time a sample takes: less is not worth a rule


def name(size: int, results: Results) -> str:
    """How a size is called."""
    return f"all {size}" if size == results.samples else str(size)


def tables(results: Results) -> list[Table]:
    """One row a size, and the powers of two."""
    all_sizes = Table(
        "What the size of a batch costs and gains",
        ("size", "rate", "noise", "known", "off the minimum", "epochs", "steps", "seconds"),
        "Noise: distance of a batch's gradient from the whole set's, relative to it. Off the minimum: mean excess of "
        f"the convex cost at rate {PATH_RATE}. Epochs, steps and seconds to the target cost, at the rate shown; "
        "(CPU seconds, one thread); > where it was not reached.",
    )
    for size, noise in results.noise.items():
        lap, floor = results.race[size], results.floors.get(size)
        row = [name(size, results), f"{lap.rate:g}", f"{noise.measured:.3f}", f"{noise.known:.3f}"]
        row.append("" if floor is None else f"{max(floor, 0):.1e}")
        finish = (f"{lap.epochs:.1f}", f"{lap.steps}", f"{lap.seconds:.3f}")
        all_sizes.rows.append([*row, *(number if lap.reached else f">{number}" for number in finish)])
    powers = Table("Microseconds a sample", ("size", "one less", "the power of two", "one more"))
    for size in (64, 128, 256):
        powers.rows.append((str(size), *(f"{1e6 * results.per_sample[size + d]:.3f}" for d in (-1, 0, 1))))
    return [all_sizes, powers]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what this run measured."""
    return [*_per_step(results), *_race(results), *_rules(results)]


def _per_step(results: Results) -> list[Claim]:
    all_agree = all(noise.agrees for noise in results.noise.values())
    falls = all(a.measured > b.measured for a, b in pairwise(results.noise.values()))
    shown = ", ".join(f"{noise.measured:.2f} for {name(size, results)}" for size, noise in results.noise.items())
    reports = {size: check_monotonic(costs) for size, costs in results.costs.items()}
    share = {size: len(report.rises) / (len(results.costs[size]) - 1) for size, report in reports.items()}
    floors = list(results.floors.values())
    ordered = all(a > b for a, b in pairwise(floors))
    return [
        Claim(
            "The smaller the batch, the noisier its gradient: like 1/√B, and 0 for all samples.",
            all_agree and falls,
            f"Distance from the whole set's gradient, relative to it: {shown}; "
            f"{'all' if all_agree else 'not all'} as sampling theory has it.",
        ),
        Claim(
            "With all samples in each step the cost falls at every step, with mini-batches it does not.",
            reports[results.samples].monotonic and all(share[size] > 0 for size in (1, 16)),
            f"Steps at which the batch's cost rose: {share[results.samples]:.0%} with all samples, {share[16]:.0%} "
            f"with 16, {share[1]:.0%} with one.",
        ),
        Claim(
            "At a constant rate single samples never settle at the minimum; the larger the batch, the nearer it stays.",
            ordered and abs(floors[-1]) < 1e-5 if results.judged else None,
            "Started at the minimum, the cost stays above it by "
            + ", ".join(f"{max(floor, 0):.1e} ({name(size, results)})" for size, floor in results.floors.items())
            + ".",
        ),
    ]


def _race(results: Results) -> list[Claim]:
    race, m = results.race, results.samples
    arrived = {size: lap for size, lap in race.items() if lap.reached}
    if not results.judged or len(arrived) < 3:
        text = "A quick run is too short to tell." if not results.judged else "Too few sizes reached the target."
        held: list[bool | None] = [None, None, None]
        evidence = [text] * 3
    else:
        fewest = min(arrived, key=lambda size: arrived[size].epochs)
        inner = [size for size in arrived if 64 <= size <= min(512, m - 1)]
        within = min((arrived[size].seconds for size in inner), default=math.inf)
        outside = min(lap.seconds for size, lap in arrived.items() if size not in inner)
        clear = max(within, outside) > TIE * min(within, outside)
        seconds = ", ".join(f"{lap.seconds:.3f} s ({name(size, results)})" for size, lap in arrived.items())
        per_step = {size: lap.seconds / lap.steps for size, lap in arrived.items()}
        one, some = race[1], race[64]
        lost = (one.seconds / one.steps) / (some.seconds / some.steps / 64)
        held = [
            bool(inner) and m in arrived and arrived[64].epochs < arrived[m].epochs,
            within < outside if clear else None,
            lost > 2,
        ]
        evidence = [
            f"To the target: {', '.join(f'{lap.epochs:.1f} ({name(size, results)})' for size, lap in arrived.items())} "
            f"epochs; the fewest with {name(fewest, results)}.",
            f"To the target: {seconds}." + ("" if clear else " The best inside and outside are too close to tell."),
            f"A sample takes {lost:.0f} times as long alone as in a batch of 64; a step takes "
            f"{1e3 * per_step.get(1, one.seconds / one.steps):.2f} ms with one and "
            f"{1e3 * some.seconds / some.steps:.2f} ms with 64.",
        ]
    return [
        Claim("A pass over the data in mini-batches gets further than one in a single step.", held[0], evidence[0]),
        Claim("The fastest size lies in between: 64 to 512, neither one sample nor all.", held[1], evidence[1]),
        Claim("Single samples lose what vectorisation gains.", held[2], evidence[2]),
    ]


def _rules(results: Results) -> list[Claim]:
    m, race = results.samples, results.race
    rule = default_batch_size(m)
    fastest = min(race, key=lambda size: race[size].seconds if race[size].reached else math.inf)
    gains = {}
    for size in (64, 128, 256):
        here, less, more = (results.per_sample[size + d] for d in (0, -1, 1))
        gains[size] = 1 - here / min(less, more)
    (good, low), (bad, high) = (results.shuffled[k] for k in ("a new order each epoch", "sorted by class"))
    excess, error = float((high - low).mean()), float((high - low).std()) / math.sqrt(len(low))
    whole, rest = divmod(m, 64)
    return [
        Claim(
            "Below 2,000 samples all of them in one batch is as good a choice as any.",
            race[rule].seconds <= TIE * race[fastest].seconds if results.judged else None,
            f"Of these {m} the rule takes {rule} at once; the target was reached first with batches of "
            f"{name(fastest, results)}: {race[fastest].seconds:.3f} s against {race[rule].seconds:.3f} s."
            if results.judged
            else "A quick run is too short to tell.",
        ),
        Claim(
            "A size that is a power of two runs faster.",
            all(gain > FASTER for gain in gains.values()) if results.judged else None,
            "Less time a sample than the better of the two neighbours: "
            + ", ".join(f"{gain:+.1%} at {size}" for size, gain in gains.items())
            + f"; {FASTER:.0%} counts.",
        ),
        Claim(
            "The samples must be shuffled anew each epoch.",
            excess > 2 * error if results.judged else None,
            f"After the same epochs the loss on the dev images is {float(low.mean()):.3f} ({good:.1%} wrong) with a "
            f"new order each epoch; sorted by class it is {excess:+.3f} ± {error:.3f} above that ({bad:.1%} wrong).",
        ),
        Claim(
            "The last batch of an epoch is smaller where the size does not divide the number of samples.",
            results.last_batch == (rest or 64),
            f"{m} samples are {whole} batches of 64 and one of {results.last_batch}.",
        ),
    ]


def paths_figure(results: Results) -> Figure:
    """The notes' picture: three ways down the same bowl."""
    from matplotlib.figure import Figure

    assert results.plane is not None
    across, up, heights, paths = results.plane
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    levels = [float(heights.min()) * 1.15**k for k in range(1, 40, 2)]
    axes.contour(across, up, heights, levels=levels, colors="lightgray", linewidths=0.8)
    styles = {1: ("tab:red", 0.7), 16: ("tab:green", 1.2), results.samples: ("black", 2.2)}
    for size, path in paths.items():
        color, width = styles[size]
        axes.plot(path[:, 0], path[:, 1], color=color, lw=width, label=f"batches of {name(size, results)}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.plot(*paths[1][0], "o", color="tab:blue", label="start")
    axes.plot(0, 0, "*", ms=14, color="tab:blue", label="minimum")
    axes.set(xlabel="from the minimum towards the start (weights' units)", ylabel="direction in which one wanders most")
    axes.set_title(f"The same {len(paths[1])} steps at rate {PICTURE_RATE}, one to all samples in each", loc="left")
    axes.legend(loc="best", framealpha=0.95)
    return figure


def race_figure(results: Results) -> Figure:
    """Training cost against epochs, and against seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for size, lap in results.race.items():
        color = COLORS.get(size, "black")
        for axes, column in ((left, 0), (right, 1)):
            points = [(point[column], point[2]) for point in lap.curve if point[column] > 0]
            axes.loglog(*zip(*points, strict=True), color=color, label=f"{name(size, results)} (α = {lap.rate:g})")
    left.set(xlabel="epochs", ylabel="cost over the whole training set")
    right.set(xlabel="seconds of computing")
    left.set_title("The way to the same cost, in epochs …", loc="left")
    right.set_title("… and in computing time", loc="left")
    right.legend(title="batch size", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def noise_figure(results: Results) -> Figure:
    """Measured noise on the curve of sampling theory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    m, first = results.samples, next(iter(results.noise.values())).known
    along = [2 ** (k / 8) for k in range(int(8 * math.log2(m)) + 1)]
    axes.loglog(along, [first * math.sqrt((m - b) / (b * (m - 1))) for b in along], color="gray", label="theory")
    points = [(size, noise.measured) for size, noise in results.noise.items() if noise.measured > 1e-4]
    axes.loglog(*zip(*points, strict=True), "o", color="tab:red", label="measured")
    axes.set(xlabel="batch size B", ylabel="‖g_B − g‖ / ‖g‖, rms over draws")
    axes.set_title("How far a batch's gradient is from the whole training set's", loc="left")
    axes.legend()
    return figure
