"""See over how many days an exponentially weighted average reaches, and what bias correction mends.

No set that scikit-learn ships is a series in time, so the daily temperatures here are drawn from the seed: a year's
wave of ±8 °C around 15 °C, and independent noise of 2 °C. That the true temperature of every day is known is what
allows smoothness, delay and the error of the first days to be measured. Three parts, each a heading in TensorBoard:

1. The weights: what an average makes of a single 1, and the window, lag and noise that follow from them.
2. The curves of β = 0.5, 0.9 and 0.98 through two years of temperatures.
3. The first days, with the correction and without.

Source: the notes, "exponentially weighted averages"; SPEC F2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING

import torch

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.report import run_experiment
from torchnotes.optim import ExponentialAverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "averages"
WINDOWS = {0.5: 2, 0.9: 10, 0.98: 50}  # the notes': days over which each averages
COLORS = {0.5: "tab:orange", 0.9: "tab:red", 0.98: "tab:green"}
MEAN, SWING, NOISE, YEAR = 15.0, 8.0, 2.0, 365  # °C, °C, °C, days
WEIGHTS = "1 Weight of a day in the average (horizontal: days ago)"
CURVES = "2 Daily temperatures and their averages in °C (horizontal: day)"
START = "3 The first days: average minus the true temperature in °C (horizontal: day)"
FIGURES = "4 The same in pictures"


@dataclass(frozen=True)
class AveragesConfig(CommonConfig):
    """Exponentially weighted averages: windows of 2, 10 and 50 days, and bias correction."""

    days: int = 730
    """Length of the series of temperatures."""

    def __post_init__(self) -> None:
        """Refuse a series in which no delay can be seen."""
        super().__post_init__()
        if self.days < YEAR:
            raise ValueError(f"days must be at least {YEAR}, got {self.days}; the delay is read off a year's wave.")


@dataclass(frozen=True)
class Average:
    """What was measured of one β.

    Attributes:
        weights: of the value of 0, 1, 2, … days ago: the answer to a single 1.
        inside: the share of all weight on the last 1/(1 − β) days.
        fall: days in which the weight falls to 1/e of the first one.
        lag: days by which the average of a straight line is behind it.
        noise: variance of the average of independent noise, as a share of the noise's own.
        delay: days by which the average of the year's wave without noise comes too late.
        roughness: mean change from day to day of the average of the temperatures, in °C.
        settled: the first day on which the correction changes the average by less than 1 %.
        errors: of the first 30 days, mean |average − true| in °C, without the correction and with it.
        curves: the averages of the temperatures, without the correction and with it.
    """

    weights: tuple[float, ...]
    inside: float
    fall: float
    lag: float
    noise: float
    delay: int
    roughness: float
    settled: int
    errors: tuple[float, float]
    curves: tuple[list[float], list[float]]


@dataclass
class Results:
    """What the experiment found; the keys of ``averages`` are β."""

    true: list[float] = field(default_factory=list)
    days: list[float] = field(default_factory=list)
    averages: dict[float, Average] = field(default_factory=dict)
    second: tuple[float, float] = (0.0, 0.0)
    reading: list[Claim] = field(default_factory=list)


def wave(day: int) -> float:
    """The true temperature of a day: coldest at the start of the year."""
    return MEAN - SWING * math.cos(2 * math.pi * day / YEAR)


def temperatures(config: AveragesConfig) -> tuple[list[float], list[float]]:
    """The true temperature of each day, and the one measured."""
    true = [wave(day) for day in range(config.days)]
    noise = torch.randn(config.days, generator=torch.Generator().manual_seed(config.seed), dtype=torch.float64)
    return true, [t + NOISE * float(n) for t, n in zip(true, noise, strict=True)]


def streams_variance(beta: float, config: AveragesConfig) -> float:
    """Variance of the average of unit noise, over many streams at once and after the start is forgotten."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    average = ExponentialAverage(beta)
    length = math.ceil(10 / (1 - beta))
    for _ in range(length):
        noise = torch.randn(2_000 if config.quick else 50_000, generator=generator).to(config.device)
        average.update(noise)
    return float(average.value.var())


def delay_of_wave(beta: float) -> int:
    """Days from the wave's peak to the peak of its average, once the start is forgotten."""
    years = 4
    series = ExponentialAverage(beta).smooth([wave(day) for day in range(years * YEAR)])
    last = series[-YEAR:]
    return last.index(max(last)) - YEAR // 2


def figures_of(beta: float, results: Results, config: AveragesConfig) -> Average:
    """All figures of one β."""
    days = results.days
    impulse = ExponentialAverage(beta, bias_correction=False).smooth([1.0] + [0.0] * 2000)
    line = ExponentialAverage(beta, bias_correction=False).smooth([float(day) for day in range(3000)])
    weights = tuple(impulse)
    window = round(1 / (1 - beta))
    rate = math.log(weights[0] / weights[1])  # the weights fall by the same factor each day
    plain, corrected = (ExponentialAverage(beta, bias_correction=c).smooth(days) for c in (False, True))
    errors = [mean(abs(curve[day] - results.true[day]) for day in range(30)) for curve in (plain, corrected)]
    return Average(
        weights=weights,
        inside=sum(weights[:window]),
        fall=1 / rate,
        lag=2999 - line[-1],
        noise=streams_variance(beta, config),
        delay=delay_of_wave(beta),
        roughness=mean(abs(b - a) for a, b in pairwise(corrected[100:])),
        settled=next(t for t in range(1, 10_000) if abs(_correction(beta, t) - 1) < 0.01),
        errors=(errors[0], errors[1]),
        curves=(plain, corrected),
    )


def _correction(beta: float, day: int) -> float:
    """Corrected over uncorrected average of the same ``day`` values: 1/(1 − βᵗ), as the library applies it."""
    average = ExponentialAverage(beta)
    average.load_state_dict({"beta": beta, "bias_correction": True, "count": day, "sum": 1.0})
    return float(average.value)


def measure(config: AveragesConfig, tick: Callable[[str], None]) -> Results:
    """Each β in turn."""
    true, days = temperatures(config)
    second = ExponentialAverage(0.98, bias_correction=False)
    second.smooth(days[:2])
    results = Results(true, days, second=(0.0196 * days[0] + 0.02 * days[1], second.uncorrected))
    for beta in WINDOWS:
        results.averages[beta] = figures_of(beta, results, config)
        tick(f"β = {beta:g}")
    return results


def tables(results: Results) -> list[Table]:
    """One row a β: the notes' window beside what was measured and what follows from the weights."""
    windows = Table(
        "Over how many days an average reaches",
        ("β", "notes' window", "1/e after", "weight inside", "lag", "known", "noise left", "known", "like a mean of"),
        "1/e after: days in which a day's weight falls to 1/e. Weight inside: the share on the last 1/(1−β) days. "
        "Lag: days behind a straight line, known to be β/(1−β). Noise left: its variance, known to be (1−β)/(1+β); "
        "a plain mean of (1+β)/(1−β) days has the same lag and leaves as much.",
    )
    start = Table(
        "The first days, and the price of smoothness",
        ("β", "day-to-day change", "late by", "error without", "error with", "settled"),
        "Change of the average from day to day in °C, days by which the year's peak comes late, mean error over the "
        "first 30 days in °C without and with bias correction, and the day from which it changes less than 1 %.",
    )
    for beta, a in results.averages.items():
        windows.rows.append(
            (f"{beta:g}", f"{WINDOWS[beta]} days", f"{a.fall:.2f}", f"{a.inside:.1%}", f"{a.lag:.2f}",
             f"{beta / (1 - beta):.2f}", f"{a.noise:.4f}", f"{(1 - beta) / (1 + beta):.4f}",
             f"{(1 + beta) / (1 - beta):.0f} days")
        )  # fmt: skip
        start.rows.append(
            (f"{beta:g}", f"{a.roughness:.2f}", f"{a.delay} days", f"{a.errors[0]:.2f}", f"{a.errors[1]:.2f}",
             f"day {a.settled}")
        )  # fmt: skip
    return [windows, start]


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what was measured."""
    av = results.averages
    short, middle, long = (av[beta] for beta in WINDOWS)
    worst = max(abs(av[beta].fall - window) for beta, window in WINDOWS.items())
    noise = max(abs(a.noise * (1 + beta) / (1 - beta) - 1) for beta, a in av.items())
    lag = max(abs(a.lag - beta / (1 - beta)) for beta, a in av.items())
    tenth = middle.weights[10] / middle.weights[0]
    printed, found = results.second
    return [
        Claim(
            "β = 0.9 averages over about 10 days, 0.98 over 50, 0.5 over 2: after 1/(1−β) a weight is about 1/e.",
            worst < 1,
            "Weights fall to 1/e within "
            + ", ".join(f"{av[beta].fall:.1f} ({beta:g})" for beta in WINDOWS)
            + f" days: {worst:.2f} days from the notes' at most.",
        ),
        Claim(
            "0.9¹⁰ ≈ 0.35 ≈ 1/e.",
            abs(tenth - 0.9**10) < 1e-12 and abs(tenth - 1 / math.e) < 0.02,
            f"The value of 10 days ago has {tenth:.4f} of today's weight; 1/e is {1 / math.e:.4f}.",
        ),
        Claim(
            "As to noise and lag, such an average is like a plain mean over 1/(1−β) days.",
            all(abs(a.noise * WINDOWS[beta] - 1) < 0.25 for beta, a in av.items()),
            f"It leaves {middle.noise:.3f} of the noise's variance at β = 0.9, where a mean of 10 days leaves 0.1: in "
            "noise and in lag it is a mean of (1+β)/(1−β) days, 19, 99 and 3"
            f"; measured, to within {max(noise, lag):.1%}.",
        ),
        Claim(
            "The longer the window, the smoother the curve and the later it follows.",
            short.roughness > middle.roughness > long.roughness and short.delay < middle.delay < long.delay,
            f"From day to day it changes by {short.roughness:.2f}, {middle.roughness:.2f} and {long.roughness:.2f} °C; "
            f"the year's peak comes {short.delay}, {middle.delay} and {long.delay} days late.",
        ),
        Claim(
            "v₂ = 0.0196 θ₁ + 0.02 θ₂ for β = 0.98.",
            math.isclose(printed, found, rel_tol=1e-12),
            f"With the first two temperatures: {found:.6f} °C, by the formula {printed:.6f}.",
        ),
        Claim(
            "Without bias correction the first values are far too low; v/(1 − βᵗ) mends them, and fades.",
            all(a.errors[1] < a.errors[0] for a in av.values()) and long.settled == 229,
            f"Error over the first 30 days at β = 0.98: {long.errors[0]:.2f} °C without, {long.errors[1]:.2f} with; "
            f"below 1 % from day {long.settled} on, since 0.98²²⁹ = 0.0098.",
        ),
    ]


def curves_figure(results: Results) -> Figure:
    """Two years of temperatures and the three averages."""
    figure = blank_figure(1, 1, panel=(10, 4.8))
    axes = figure.axes[0]
    axes.plot(results.days, ".", color="lightgray", ms=3, label="temperature of the day")
    axes.plot(results.true, color="black", lw=1, ls="--", label="true temperature")
    for beta, a in results.averages.items():
        axes.plot(
            a.curves[1], color=COLORS[beta], lw=0.8 if beta == 0.5 else 1.6, label=f"β = {beta:g}: {WINDOWS[beta]} days"
        )
    axes.set(xlabel="day", ylabel="°C")
    axes.set_title("A longer window is smoother, and late", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def weights_figure(results: Results) -> Figure:
    """How much each day of the past weighs."""
    figure = blank_figure(1, 1, panel=(7.5, 4.2))
    axes = figure.axes[0]
    for beta, a in results.averages.items():
        axes.semilogy(a.weights[:101], color=COLORS[beta], label=f"β = {beta:g}")
        axes.plot(WINDOWS[beta], a.weights[WINDOWS[beta]], "o", color=COLORS[beta])
    axes.set(xlabel="days ago", ylabel="weight in the average", ylim=(1e-4, 1))
    axes.set_title("What each day of the past weighs; dots at 1/(1−β) days", loc="left")
    axes.legend(loc="upper right")
    return figure


def start_figure(results: Results) -> Figure:
    """The first 120 days with the correction and without."""
    figure = blank_figure(1, 1, panel=(8.5, 4.2))
    axes = figure.axes[0]
    axes.plot(results.days[:120], ".", color="lightgray", ms=4, label="temperature of the day")
    for beta in (0.9, 0.98):
        plain, corrected = results.averages[beta].curves
        axes.plot(plain[:120], color=COLORS[beta], ls=":", lw=1.8, label=f"β = {beta:g}, uncorrected")
        axes.plot(corrected[:120], color=COLORS[beta], lw=1.8, label=f"β = {beta:g}, corrected")
    axes.set(xlabel="day", ylabel="°C")
    axes.set_title("The first days: v starts at 0, v/(1 − βᵗ) where the data are", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a β, one of the temperatures, and the pictures."""
    for beta, a in results.averages.items():
        writer = logs[f"beta_{beta:g}"]
        for ago, weight in enumerate(a.weights[:101]):
            writer.add_scalar(f"{WEIGHTS}/weight", weight, ago)
        for day, (plain, corrected) in enumerate(zip(*a.curves, strict=True)):
            writer.add_scalar(f"{CURVES}/average", corrected, day)
            if day < 120:
                writer.add_scalar(f"{START}/1 uncorrected", plain - results.true[day], day)
                writer.add_scalar(f"{START}/2 corrected", corrected - results.true[day], day)
    for day, value in enumerate(results.days):
        logs["temperatures"].add_scalar(f"{CURVES}/average", value, day)
    pictures: list[tuple[str, Callable[[Results], Figure], str, str]] = [
        ("Three averages of daily temperatures", curves_figure, "curves.png",
         "Two years of drawn daily temperatures and their exponentially weighted averages. The longer the window, the "
         "smoother the curve, and the later it follows the season."),
        ("Weights of the days of the past", weights_figure, "weights.png",
         "The answer to a single 1 shows what each day of the past weighs. At 1/(1−β) days, marked by dots, a weight "
         "has fallen to about 1/e."),
        ("The first days", start_figure, "bias_correction.png",
         "Without correction an average starts near 0 and takes about as long as its window to reach the data; with it "
         "the first day is already on them."),
    ]  # fmt: skip
    for title, draw, file, caption in pictures:
        save_figure(logs["overview"], f"{FIGURES}/{title}", draw(results), logs.folder / file, caption)


def main(config: AveragesConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    return run_experiment(NAME, config, console, len(WINDOWS), measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(AveragesConfig, main, NAME)
