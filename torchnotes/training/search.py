"""Search for hyperparameters: at random, on the right scales, coarse to fine. Kept and pruned by Optuna."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchnotes._checks import check_in_range, describe
from torchnotes.training._study import finish_round, open_study, settle_terms, settled
from torchnotes.training.callbacks import Callback, Run
from torchnotes.training.space import Dimension


class Trial:
    """What the objective is given.

    Attributes:
        params: the hyperparameters to try, by name.
        number: which trial of the whole search this is, from 0; use it as a seed.
    """

    def __init__(self, trial: Any, params: dict[str, Any], number: int) -> None:
        self._trial = trial
        self.params = params
        self.number = number

    def report(self, step: int, value: float) -> None:
        """Say how it goes, once an epoch say; ends the trial here if it does worse than half of the others did."""
        import optuna

        self._trial.report(value, step)
        if self._trial.should_prune():
            raise optuna.TrialPruned


Objective = Callable[[Trial], float]


class ReportTo(Callback):
    """A callback that reports each epoch of :func:`torchnotes.training.fit` to a trial, so that a poor one ends early.

    >>> def objective(trial):
    ...     model = ...
    ...     run = fit(model, ..., callbacks=[ReportTo(trial)])
    ...     return min(record["dev_loss"] for record in run.history)

    Args:
        trial: what the objective was given.
        monitor: which entry of the history to report.
    """

    def __init__(self, trial: Trial, monitor: str = "dev_loss") -> None:
        self.trial = trial
        self.monitor = monitor

    def on_epoch(self, run: Run) -> None:
        """Report the epoch's record."""
        record = run.history[-1]
        if self.monitor not in record:
            raise KeyError(
                f"ReportTo reports {self.monitor!r}, got a record of {', '.join(record)}; "
                "give fit a dev set, or set monitor."
            )
        self.trial.report(run.epoch, record[self.monitor])


@dataclass(frozen=True)
class TrialRecord:
    """One trial done: ``state`` is "complete", "pruned" or "failed" (then ``value`` is None)."""

    number: int
    round: int
    params: dict[str, Any]
    value: float | None
    state: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best_params: the hyperparameters of the best trial.
        best_value: its value.
        trials: all trials, in order.
        importance: the share of the variance of the values that each hyperparameter explains (fANOVA), largest first;
            empty with fewer than four complete trials or without scikit-learn.
    """

    best_params: dict[str, Any]
    best_value: float
    trials: tuple[TrialRecord, ...]
    importance: dict[str, float]

    def __str__(self) -> str:
        done = [trial.state for trial in self.trials]
        counts = ", ".join(f"{done.count(state)} {state}" for state in ("complete", "pruned", "failed"))
        lines = [f"best {self.best_value:.4g} of {len(done)} trials ({counts})"]
        for name, value in self.best_params.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            weight = f"   importance {self.importance[name]:.2f}" if name in self.importance else ""
            lines.append(f"  {name} = {shown}{weight}")
        return "\n".join(lines)


def search(
    objective: Objective,
    space: Mapping[str, Dimension],
    *,
    trials: int = 20,
    rounds: int = 1,
    keep: float = 0.25,
    direction: str = "minimize",
    prune: bool = True,
    workers: int = 1,
    store: str | os.PathLike[str] | None = None,
    name: str = "search",
    seed: int = 0,
) -> SearchResult:
    """Search a space of hyperparameters at random, coarse to fine.

    At random and not on a grid: of 25 trials on a 5 × 5 grid only 5 values of the learning rate are ever tried; drawn
    at random, all 25 differ, and no one knows beforehand which hyperparameter matters. Each on its own scale: learning
    rates as :class:`LogUniform`, β as :class:`OneMinusLog`. In order of importance: the learning rate; then momentum,
    batch size and hidden units; then layers and decay.

    With ``rounds`` above 1 the trials are shared out; each round draws from the range of the best ``keep`` of all
    trials before it. Each trial's hyperparameters depend only on the seed, its place, and the results of earlier
    rounds: not on how many workers there are, nor on interruptions. (Which trials are pruned does depend on the order
    in which they run.)

    Tending one model over time instead (where there is power for one only) is what
    :class:`torchnotes.optim.lr_scheduler.ManualDecay` is for.

    Args:
        objective: ``objective(trial) -> float``; reads ``trial.params``, may call ``trial.report(epoch, value)``. A
            ``FloatingPointError`` (a loss that is no longer finite) or a result of NaN counts as a failed trial.
        space: hyperparameters by name: :class:`LogUniform`, :class:`OneMinusLog`, :class:`Uniform`, :class:`Integer`,
            :class:`Choice`.
        trials: trials in all.
        rounds: how often to narrow the space, plus one.
        keep: the part of the trials that counts as good.
        direction: ``"minimize"`` or ``"maximize"``.
        prune: end a trial whose reports are worse than the median of the others' at the same step.
        workers: processes on this machine; the objective must then be importable.
        store: where the trials are kept: a file (Optuna's journal), or a database URL. The same call with the same
            store goes on where it was interrupted; made on several machines at once, they share the trials out, and
            each returns the whole result. A trial whose process was killed is run again: at once if it ran on this
            machine, else when nothing has been heard of it for a minute. None keeps the trials in memory.
        name: which search of the store.
        seed: of the draws.

    Returns:
        A :class:`SearchResult`; printed, it says all of it.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        TypeError: an objective that cannot be sent to worker processes, or that returns no number.
        ValueError: an empty space, an option out of range, no trial that ended with a value, or a store that holds a
            search of this name over another space, in another direction or from another seed.

    Source: the notes, "hyperparameter tuning"; SPEC F11.

    >>> from torchnotes.training import LogUniform
    >>> result = search(lambda t: abs(math.log10(t.params["lr"]) + 2), {"lr": LogUniform()}, trials=30, rounds=3)
    >>> 0.005 < result.best_params["lr"] < 0.02
    True
    """
    _check_options(space, trials, rounds, keep, direction, workers)
    _import_optuna()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        if store is None and workers > 1:
            store = Path(folder) / "journal"
        if workers > 1:
            _check_picklable(objective)
        study = open_study(store, name, direction, prune)
        shown = ", ".join(f"{key}: {space[key]}" for key in sorted(space))
        settle_terms(study, {"space": shown, "direction": direction, "seed": str(seed)})
        plan = _Plan(dict(space), trials, rounds, keep, seed)
        if workers == 1:
            _work(study, objective, plan)
        else:
            _work_in_processes(workers, (store, name, direction, prune, objective, plan))
        return _result(study, space, direction)


@dataclass(frozen=True)
class _Plan:
    """What every process that takes part must know."""

    space: Mapping[str, Dimension]
    trials: int
    rounds: int
    keep: float
    seed: int


def _work(study: Any, objective: Objective, plan: _Plan) -> None:
    """Round by round: each is narrowed once all trials of the one before are done, whoever did them."""
    for number in range(plan.rounds):
        count = plan.trials // plan.rounds + (number < plan.trials % plan.rounds)
        first = number * (plan.trials // plan.rounds) + min(number, plan.trials % plan.rounds)
        space = _narrow(plan.space, study, number, plan.keep)

        def draw(place: int, space: Mapping[str, Dimension] = space) -> dict[str, Any]:
            random = np.random.default_rng([plan.seed, place])
            return {key: space[key].draw(random) for key in sorted(space)}

        def run(trial: Any) -> float:
            params = {key: dimension.suggest(trial, key) for key, dimension in plan.space.items()}
            return objective(Trial(trial, params, trial.user_attrs["place"]))

        finish_round(study, run, number, range(first, first + count), draw)


def _work_in_processes(workers: int, job: tuple[Any, ...]) -> None:
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    from torch.multiprocessing.spawn import spawn

    spawn(_process, args=(threads, job), nprocs=workers)


def _process(rank: int, threads: int, job: tuple[Any, ...]) -> None:
    import torch

    store, name, direction, prune, objective, plan = job
    torch.set_num_threads(threads)
    with _quiet():
        _work(open_study(store, name, direction, prune), objective, plan)


def _narrow(space: Mapping[str, Dimension], study: Any, number: int, keep: float) -> Mapping[str, Dimension]:
    """The space of a round: that of the round before, narrowed to the range of the best of all trials before."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    before_now = list(settled(study).values())
    for earlier in range(1, number + 1):
        before = [t for t in before_now if t.user_attrs["round"] < earlier and t.state.name == "COMPLETE"]
        tried = sum(t.user_attrs["round"] == earlier - 1 for t in before_now)
        if len(before) < 2:
            continue
        best = sorted(before, key=lambda t: sign * t.value)[: max(2, math.ceil(keep * len(before)))]
        space = {key: space[key].narrowed([t.params[key] for t in best], max(tried, 2)) for key in space}
    return space


def _result(study: Any, space: Mapping[str, Dimension], direction: str) -> SearchResult:
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    records = tuple(
        TrialRecord(
            place,
            trial.user_attrs["round"],
            {key: trial.params[key] for key in space},
            trial.value if trial.state.name == "COMPLETE" else None,
            states[trial.state.name],
        )
        for place, trial in settled(study).items()
    )
    complete = [record for record in records if record.value is not None]
    if not complete:
        raise ValueError(
            f"at least one trial must end with a value, got none of {len(records)}; "
            "look at the objective, or lower the upper end of the learning rate."
        )
    pick = min if direction == "minimize" else max
    best = pick(complete, key=lambda record: record.value if record.value is not None else 0.0)
    assert best.value is not None
    return SearchResult(best.params, best.value, records, _importance(study, len(complete)))


def _importance(study: Any, complete: int) -> dict[str, float]:
    import importlib.util

    import optuna

    if complete < 4 or importlib.util.find_spec("sklearn") is None:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # every trial had the same value: nothing to explain
        return {}
    return {key: float(value) for key, value in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna reports each trial on the terminal; the caller gets them as a result."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _import_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "search needs Optuna, which is not installed; install it with pip install 'torchnotes[experiments]'."
        ) from error


def _check_picklable(objective: Objective) -> None:
    try:
        pickle.dumps(objective)
    except Exception as error:
        raise TypeError(
            f"objective must be importable to run in several processes, got {describe(objective)}; "
            "define it at the top of a module, or use workers=1."
        ) from error


def _check_options(
    space: Mapping[str, Dimension], trials: int, rounds: int, keep: float, direction: str, workers: int
) -> None:
    if not space:
        raise ValueError("space must hold at least one hyperparameter, got none; try {'lr': LogUniform(1e-4, 1.0)}.")
    for key, dimension in space.items():
        if not hasattr(dimension, "suggest"):
            raise TypeError(
                f"space[{key!r}] must be LogUniform, OneMinusLog, Uniform, Integer or Choice, got "
                f"{describe(dimension)}; wrap the range in one of them."
            )
    for name, value in (("trials", trials), ("rounds", rounds), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}; it is a number of whole things.")
    if trials < rounds:
        raise ValueError(f"trials must be at least rounds, got {trials} and {rounds}; each round needs a trial.")
    check_in_range(keep, "keep", 0.0, 1.0, low_open=True, remedy="it is the part of the trials that counts as good")
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"direction must be 'minimize' or 'maximize', got {direction!r}; a cost is minimised.")
