"""See what random search, logarithmic scales and coarse to fine gain over a grid at the same number of trials.

Real data: handwritten digits; a trial trains a small net by momentum for a few epochs and is judged by its dev error.
Everything goes through ``torchnotes.training.search`` except the grid, which it does not offer. Four parts:

1. Random trials against a grid of as many, over the learning rate and one hyperparameter that hardly matters.
2. Learning rates and 1 − β on a logarithmic scale against a linear one, for momentum and for Adam.
3. Coarse to fine: the same trials in three rounds, each within the range of the best so far.
4. The order of importance of six hyperparameters.

Source: the notes, "hyperparameter tuning"; SPEC F11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line
from experiments.digits import CLASSES, Digits, load_digits
from experiments.figures import blank_figure
from experiments.logs import VariantLogs, save_figure
from experiments.nets import error_rate, new_net
from experiments.report import run_experiment
from torchnotes.ops import cross_entropy
from torchnotes.optim import Adam, Momentum
from torchnotes.optim.lr_scheduler import InverseTimeDecay
from torchnotes.training import (
    Choice,
    Integer,
    LogUniform,
    OneMinusLog,
    SearchResult,
    Trial,
    Uniform,
    fit,
    search,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "hyperparameter_search"
LOW, HIGH = 1e-4, 1.0  # the notes' range of learning rates
SIDE = 4  # of the grid
DECAYS = (0.0, 0.2)  # range of the one that hardly matters over so few epochs
NOTES_ORDER = ({"lr"}, {"beta", "batch", "hidden"}, {"layers", "decay"})
WORDS = {"lr": "learning rate", "beta": "momentum β", "batch": "batch size", "hidden": "hidden units",
         "layers": "layers", "decay": "decay rate"}  # fmt: skip
TRIALS = "1 Best dev error after so many trials, mean over searches (horizontal: trial)"
IMPORTANCE = "2 Share of the variance of the dev error that each hyperparameter explains (horizontal: place)"
FIGURES = "3 The same in pictures"


@dataclass(frozen=True)
class HyperparameterSearchConfig(CommonConfig):
    """Search for hyperparameters: random against a grid, log scales, coarse to fine, order of importance."""

    searches: int = 5
    """How often each kind of search is repeated, with other draws."""
    trials: int = 80
    """Trials of the search for the order of importance."""

    def __post_init__(self) -> None:
        """Refuse what gives no standard error and no order."""
        super().__post_init__()
        if self.searches < 2 or self.trials < 8:
            raise ValueError(
                f"searches must be at least 2 and trials at least 8, got {self.searches} and {self.trials}; "
                "fewer say nothing about chance."
            )


Points = list[tuple[dict[str, Any], float]]  # hyperparameters of each trial, and its dev error


@dataclass
class Results:
    """What the experiment found; ``kinds`` holds the trials of every search of a kind, in order."""

    judged: bool = True
    kinds: dict[str, list[Points]] = field(default_factory=dict)
    momenta: dict[str, list[float]] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    best_error: float = 1.0
    reading: list[Claim] = field(default_factory=list)


def train(digits: Digits, epochs: int, params: Mapping[str, Any]) -> float:
    """The dev error of a net trained with these hyperparameters; what is not named has its usual value."""
    hidden = [params.get("hidden", 32)] * params.get("layers", 1)
    net = new_net([64, *hidden, CLASSES], seed=0, device=digits.x_train.device)
    optimizer: Adam | Momentum
    if params.get("rule") == "Adam":
        optimizer = Adam(net.parameters(), lr=params["lr"])
    else:
        optimizer = Momentum(net.parameters(), lr=params["lr"], momentum=params.get("beta", 0.9))
    run = fit(
        net, (digits.x_train, digits.y_train), loss=cross_entropy, optimizer=optimizer, epochs=epochs,
        dev=(digits.x_dev, digits.y_dev), metrics={"error": error_rate}, batch_size=params.get("batch", 64),
        scheduler=InverseTimeDecay(optimizer, params.get("decay", 0.0)), progress=False,
    )  # fmt: skip
    return run.history[-1]["dev_error"]


def judge(digits: Digits, epochs: int, params: Mapping[str, Any]) -> float:
    """The dev error; a run that diverges has learned nothing, and counts as guessing."""
    try:
        return train(digits, epochs, params)
    except FloatingPointError:
        return 1 - 1 / CLASSES


def objective(digits: Digits, epochs: int, rule: str, trial: Trial) -> float:
    """The same as ``search`` calls it."""
    return judge(digits, epochs, {**trial.params, "rule": rule})


def points(result: SearchResult) -> Points:
    """The trials of a search, in order."""
    return [(record.params, record.value) for record in result.trials if record.value is not None]


def grid(error_of: Callable[[dict[str, Any]], float], seed: int) -> Points:
    """SIDE × SIDE trials, the learning rates on a logarithmic scale too; where the grid lies in its cells is drawn."""
    where = torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
    found = []
    for i in range(SIDE):
        for j in range(SIDE):
            lr = LOW * (HIGH / LOW) ** ((i + where[0]) / SIDE)
            decay = DECAYS[0] + (DECAYS[1] - DECAYS[0]) * (j + where[1]) / SIDE
            found.append(({"lr": lr, "decay": decay}, error_of({"lr": lr, "decay": decay})))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    return [found[place] for place in order]  # the best so far must not depend on the end one starts from


def compare(digits: Digits, config: HyperparameterSearchConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Parts 1 to 3: every kind of search, repeated."""
    epochs = 1 if config.quick else 2
    decays = Uniform(*DECAYS)
    spaces: dict[str, tuple[str, dict[str, Any], int]] = {
        "random": ("momentum", {"lr": LogUniform(LOW, HIGH), "decay": decays}, 1),
        "linear scale": ("momentum", {"lr": Uniform(LOW, HIGH), "decay": decays}, 1),
        "coarse to fine": ("momentum", {"lr": LogUniform(LOW, HIGH), "decay": decays}, 3),
        "random, Adam": ("Adam", {"lr": LogUniform(LOW, HIGH), "decay": decays}, 1),
        "linear scale, Adam": ("Adam", {"lr": Uniform(LOW, HIGH), "decay": decays}, 1),
    }
    count = SIDE if config.quick else SIDE**2
    for repeat in range(2 if config.quick else config.searches):
        seed = config.seed + 100 * repeat
        if config.quick:  # one column of the grid
            tried = [{"lr": LOW * (HIGH / LOW) ** ((i + 0.5) / SIDE), "decay": 0.1} for i in range(SIDE)]
            found = [(params, judge(digits, epochs, params)) for params in tried]
        else:
            found = grid(partial(judge, digits, epochs), seed)
        results.kinds.setdefault("grid", []).append(found)
        for name, (rule, space, rounds) in spaces.items():
            run = partial(objective, digits, epochs, rule)
            result = search(run, space, trials=count, rounds=rounds, prune=False, seed=seed)
            results.kinds.setdefault(name, []).append(points(result))
        tick(f"searches {repeat + 1}")
    scales: dict[str, OneMinusLog | Uniform] = {
        "log of 1 − β": OneMinusLog(0.9, 0.999),
        "linear": Uniform(0.9, 0.999),
    }
    for name, scale in scales.items():
        random = np.random.default_rng(config.seed)
        results.momenta[name] = [scale.draw(random) for _ in range(1000)]
    tick("scales of β")


def rank(digits: Digits, config: HyperparameterSearchConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Part 4: all six at once, and the share of the variance that each explains."""
    space: dict[str, Any] = {
        "lr": LogUniform(LOW, HIGH),
        "beta": OneMinusLog(0.9, 0.999),
        "batch": Choice(32, 64, 128, 256, 512),
        "hidden": Integer(8, 128, log=True),
        "layers": Integer(1, 4),
        "decay": Uniform(0.0, 1.0),
    }
    run = partial(objective, digits, 1 if config.quick else 4, "momentum")
    trials = 8 if config.quick else config.trials
    found = search(run, space, trials=trials, prune=False, seed=config.seed)
    results.importance, results.best, results.best_error = found.importance, found.best_params, found.best_value
    tick("order of importance")


def best_after(kind: list[Points]) -> list[tuple[float, float]]:
    """Mean over the searches of the best dev error after 1, 2, … trials, and its standard error."""
    rows = [[min(error for _, error in found[: count + 1]) for count in range(len(found))] for found in kind]
    return [(mean(column), stdev(column) / math.sqrt(len(column))) for column in zip(*rows, strict=True)]


def measure(config: HyperparameterSearchConfig, tick: Callable[[str], None]) -> Results:
    """All parts."""
    digits = load_digits(seed=config.seed, device=config.device)
    results = Results(judged=not config.quick)
    compare(digits, config, results, tick)
    rank(digits, config, results, tick)
    return results


def tables(results: Results) -> list[Table]:
    """One row a kind of search; and the hyperparameters by importance."""
    kinds = Table(
        "Searches over the learning rate and a decay, as many trials each",
        ("search", "trials", "learning rates tried", "below 0.1", "best dev error", "±"),
        f"Means over {len(results.kinds['grid'])} searches. Below 0.1: of the learning rates. ±: standard error.",
    )
    for name, kind in results.kinds.items():
        final, error = best_after(kind)[-1]
        rates = [[params["lr"] for params, _ in found] for found in kind]
        distinct = mean(len({round(rate, 12) for rate in row}) for row in rates)
        below = mean(rate < 0.1 for row in rates for rate in row)
        kinds.rows.append((name, str(len(kind[0])), f"{distinct:.0f}", f"{below:.0%}", f"{final:.2%}", f"{error:.2%}"))
    order = Table(
        "Hyperparameters by importance",
        ("place", "hyperparameter", "share of the variance", "best value"),
        f"Share of the variance of the dev error over all trials that each explains (fANOVA). Best dev error "
        f"{results.best_error:.2%}.",
    )
    for place, (name, share) in enumerate(results.importance.items(), start=1):
        value = results.best[name]
        order.rows.append((str(place), WORDS[name], f"{share:.1%}", f"{value:.4g}"))
    return [kinds, order]


def _best_rate(found: Points) -> float:
    return float(min(found, key=lambda point: point[1])[0]["lr"])


def better(one: list[Points], other: list[Points]) -> tuple[bool | None, float, float]:
    """Whether the searches of one kind end with a lower error; None within two standard errors of the difference."""
    gains = [min(error for _, error in b) - min(error for _, error in a) for a, b in zip(one, other, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains))
    return (None if abs(mean(gains)) <= 2 * error else mean(gains) > 0), mean(gains), error


def claims(results: Results) -> list[Claim]:
    """The notes' statements, each judged by what was measured."""
    kinds, judged = results.kinds, results.judged
    distinct = {name: min(len({p["lr"] for p, _ in found}) for found in kind) for name, kind in kinds.items()}
    linear = mean(params["lr"] > 0.1 for found in kinds["linear scale"] for params, _ in found)
    log = mean(params["lr"] > 0.1 for found in kinds["random"] for params, _ in found)
    long = {name: mean(1 / (1 - beta) > 100 for beta in betas) for name, betas in results.momenta.items()}
    trials = len(kinds["random"][0])
    shares = results.importance
    first, second, third = ([shares.get(name, 0.0) for name in group] for group in NOTES_ORDER)
    listed = ", ".join(f"{WORDS[name]} {share:.0%}" for name, share in shares.items())

    def verdict(one: str, other: str) -> tuple[bool | None, str]:
        held, gain, error = better(kinds[one], kinds[other])
        word = "lower" if gain > 0 else "higher"
        shown = f"best dev error {abs(gain):.2%} {word}, ± {error:.2%} over {len(kinds[one])} searches"
        return (held if judged else None), shown + (", which is within chance." if held is None else ".")

    random_wins, random_shown = verdict("random", "grid")
    scale_wins, scale_shown = verdict("random", "linear scale")
    adam_wins, adam_shown = verdict("random, Adam", "linear scale, Adam")
    both = (scale_wins, adam_wins)
    best = {name: median(_best_rate(found) for found in kinds[name]) for name in ("random", "random, Adam")}
    fine_wins, fine_shown = verdict("coarse to fine", "random")
    return [
        Claim(
            "At random every trial tries another value of the one that matters, on a grid few are tried.",
            distinct["random"] == trials and distinct["grid"] <= SIDE,
            f"Of {trials} trials {distinct['random']} learning rates at random, {distinct['grid']} on the grid.",
        ),
        Claim(
            "So random search finds better values than a grid in as many trials.",
            random_wins,
            f"At random {random_shown}",
        ),
        Claim(
            "On a linear scale nine draws in ten of the learning rate lie above 0.1; on a logarithmic one a quarter.",
            abs(linear - 0.9) < 0.08 and abs(log - 0.25) < 0.12 if judged else None,
            f"From {LOW:g} to {HIGH:g}: {linear:.0%} and {log:.0%}.",
        ),
        Claim(
            "The logarithmic scale finds better learning rates than the linear one, whatever the rule.",
            False if False in both else None if None in both else True,
            f"On it, momentum: {scale_shown} Adam: {adam_shown} The best rates found lie about {best['random']:.2g} "
            f"for momentum, where most draws of a linear scale fall, and about {best['random, Adam']:.2g} for Adam.",
        ),
        Claim(
            "β is searched by the logarithm of 1 − β: so as many draws fall on windows of 10 to 100 as of 100 to 1000.",
            abs(long["log of 1 − β"] - 0.5) < 0.1 and long["linear"] < 0.2,
            f"Windows above 100: {long['log of 1 − β']:.0%} of the draws, on a linear scale {long['linear']:.0%}.",
        ),
        Claim(
            "Coarse to fine finds better values than the same trials at once.",
            fine_wins,
            f"Coarse to fine {fine_shown}",
        ),
        Claim(
            "The learning rate matters most.",
            min(first) > max(second + third) if judged and shares else None,
            f"It explains {first[0]:.0%} of the variance of the dev error, the next {max(second + third):.0%}."
            if shares
            else "Too few trials for shares.",
        ),
        Claim(
            "Momentum, batch size and hidden units come next, each before layers and decay.",
            min(second) > max(third) if judged and shares else None,
            f"Shares of the variance: {listed}." if shares else "Too few trials for shares.",
        ),
    ]


def landscape_figure(results: Results) -> Figure:
    """Grid and random trials of the first search over both hyperparameters, and over the one that matters."""
    figure = blank_figure(1, 2, panel=(5, 3.9), title="The first search: where a grid and random trials look")
    for axes, name in zip(figure.axes, ("grid", "random"), strict=True):
        found = results.kinds[name][0]
        rates, decays = ([params[key] for params, _ in found] for key in ("lr", "decay"))
        dots = axes.scatter(rates, decays, c=[error for _, error in found], cmap="viridis_r", vmin=0, vmax=0.9, s=45)
        axes.plot(rates, [-0.02] * len(rates), "|", color="black", ms=10, clip_on=False)
        axes.set(xscale="log", xlim=(LOW, HIGH), xlabel="learning rate (ticks: values tried)", ylim=(-0.03, 0.21))
        axes.set_title(f"{name}: {len({round(rate, 12) for rate in rates})} learning rates", fontsize=11)
    figure.axes[0].set_ylabel("decay rate")
    figure.colorbar(dots, ax=figure.axes, label="dev error")
    return figure


def progress_figure(results: Results) -> Figure:
    """Best dev error so far, by trials."""
    figure = blank_figure(1, 1, panel=(8, 4.2))
    axes = figure.axes[0]
    colors = ("tab:gray", "tab:blue", "tab:red", "tab:green", "tab:blue", "tab:red")
    for color, (name, kind) in zip(colors, results.kinds.items(), strict=True):
        middle, spread = zip(*best_after(kind), strict=True)
        along = range(1, len(middle) + 1)
        axes.plot(along, middle, ":" if "Adam" in name else "--" if "fine" in name else "-", color=color, label=name)
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(along, low, high, color=color, alpha=0.15)
    axes.set(xlabel="trials", ylabel="best dev error so far", yscale="log")
    axes.set_title(f"Mean of {len(kind)} searches, with its standard error", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def importance_figure(results: Results) -> Figure:
    """Bars of the shares of variance."""
    figure = blank_figure(1, 1, panel=(6.5, 3.6))
    axes = figure.axes[0]
    names = list(reversed(results.importance))
    bars = axes.barh([WORDS[name] for name in names], [results.importance[name] for name in names], color="tab:blue")
    axes.bar_label(bars, [f"{results.importance[name]:.1%}" for name in names], padding=3)
    axes.set(
        xlabel="share of the variance of the dev error", xlim=(0, 1.2 * max(results.importance.values(), default=1))
    )
    axes.set_title("What explains the dev error", loc="left")
    return figure


def write_logs(results: Results, logs: VariantLogs) -> None:
    """One run a kind of search, and the pictures."""
    for name, kind in results.kinds.items():
        for trial, (error, _) in enumerate(best_after(kind), start=1):
            logs[name.replace(",", "").replace(" ", "_")].add_scalar(f"{TRIALS}/best dev error", error, trial)
    for place, (name, share) in enumerate(results.importance.items(), start=1):
        logs[f"importance_{name}"].add_scalar(f"{IMPORTANCE}/share", share, place)
    pictures: list[tuple[str, Callable[[Results], Figure], str, str]] = [
        ("Where a grid and random trials look", landscape_figure, "trials.png",
         "As many trials on a grid and at random over the learning rate, which matters, and a decay rate, which hardly "
         "does. The ticks below are the learning rates that were tried."),
        ("Best dev error by number of trials", progress_figure, "best.png",
         "The best dev error so far as trials go on, for each kind of search, averaged over repeated searches; the "
         "band is one standard error."),
        ("Importance of each hyperparameter", importance_figure, "importance.png",
         "The share of the variance of the dev error over all trials of a random search that each of six "
         "hyperparameters explains."),
    ]  # fmt: skip
    for title, draw, file, caption in pictures:
        save_figure(logs["overview"], f"{FIGURES}/{title}", draw(results), logs.folder / file, caption)


def main(config: HyperparameterSearchConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    pieces = (2 if config.quick else config.searches) + 2
    return run_experiment(NAME, config, console, pieces, measure, claims, tables, write_logs)


if __name__ == "__main__":
    command_line(HyperparameterSearchConfig, main, NAME)
