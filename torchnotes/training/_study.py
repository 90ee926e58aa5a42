"""Trials in a store that several processes, on one machine or many, work off together.

Every process does the same: it enqueues the places of a round that no one has, takes the next waiting trial, and at
the end of the round waits for the trials that others still run. What makes that safe: the store hands a waiting trial
to one process only; of two trials with the same place (enqueued at the same moment) the one with the lower number
counts; and who runs a trial shows that it is alive.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torchnotes._checks import describe

BEAT = 10.0  # seconds between two signs of life of a running trial
LOST_AFTER = 60.0  # seconds without one after which it is run again


def open_study(store: str | os.PathLike[str] | None, name: str, direction: str, prune: bool) -> Any:
    """The study of that name, made if it is not there: in memory, in a journal file or in a database."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage: Any = None
    if store is not None and "://" not in str(store):
        if not Path(store).parent.is_dir():
            raise FileNotFoundError(f"the directory of the store must exist, got {Path(store).parent}; make it first.")
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(store)))
    elif store is not None:
        storage = _database(str(store))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if prune else optuna.pruners.NopPruner()
    sampler = optuna.samplers.RandomSampler(seed=0)  # never asked: all trials are enqueued
    return optuna.create_study(
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        study_name=name,
        direction="maximize" if direction == "maximize" else "minimize",
        load_if_exists=True,
    )


def settle_terms(study: Any, terms: dict[str, str]) -> None:
    """Write down what a search is about with its first call, and refuse later ones that are about something else."""
    for key, mine in terms.items():
        there = study.user_attrs.get(key)
        if there is None:
            study.set_user_attr(key, mine)
        elif there != mine:
            raise ValueError(
                f"the search {study.study_name!r} of this store must go on with the same {key}, got {there} there and "
                f"{mine} here; use the same, another name, or another store."
            )


def _database(url: str) -> Any:
    import optuna

    # SQLite lets one process write at a time: the others wait, longer than its own 5 seconds.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception:  # another process made the tables at the same moment
        time.sleep(1.0)
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def settled(study: Any) -> dict[int, Any]:
    """The trials that are done, by place: with a value, pruned or diverged; not those that broke off."""
    found: dict[int, Any] = {}
    for trial in study.get_trials(deepcopy=False):
        place = trial.user_attrs.get("place")
        if place is not None and place not in found and _done(trial):
            found[place] = trial
    return dict(sorted(found.items()))


def _done(trial: Any) -> bool:
    return trial.state.name in ("COMPLETE", "PRUNED") or "diverged" in trial.user_attrs


def finish_round(
    study: Any, run: Callable[[Any], float], number: int, places: range, draw: Callable[[int], dict[str, Any]]
) -> None:
    """Work until every place of the round is settled.

    Args:
        study: of the store.
        run: runs a trial and returns its value.
        number: of the round.
        places: of its trials in the whole search.
        draw: the hyperparameters of a place.
    """
    watch, idle = _Watch(), 0
    while open_places := set(places) - settled(study).keys():
        watch.give_up_lost(study)
        _enqueue_missing(study, number, open_places, draw)
        trial = _next_trial(study)
        if trial is not None:
            idle = 0
            _run(study, trial, run)
        elif not _states(study, "WAITING"):  # all that is left is being run elsewhere
            idle += 1
            time.sleep(min(0.02 * 1.5**idle, 2.0))


def _states(study: Any, *names: str) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in names]


def _enqueue_missing(study: Any, number: int, places: set[int], draw: Callable[[int], dict[str, Any]]) -> None:
    there = {trial.user_attrs.get("place") for trial in _states(study, "WAITING", "RUNNING")}
    for place in sorted(places - there):
        study.enqueue_trial(draw(place), user_attrs={"place": place, "round": number})


def _next_trial(study: Any) -> Any:
    """The next waiting trial, this process's from here on; None if there is none for it."""
    if not _states(study, "WAITING"):
        return None
    trial = study.ask()
    place = trial.user_attrs.get("place")
    if place is None or _is_double(study, trial.number, place):
        _tell(study, trial.number, state="FAIL")  # another process took the last one, or has this place
        return None
    return trial


def _is_double(study: Any, number: int, place: int) -> bool:
    same = [t for t in study.get_trials(deepcopy=False) if t.number < number and t.user_attrs.get("place") == place]
    return any(trial.state.name != "FAIL" or _done(trial) for trial in same)


def _run(study: Any, trial: Any, run: Callable[[Any], float]) -> None:
    import optuna

    with _alive(trial):
        try:
            value = _number(run(trial))
        except optuna.TrialPruned:
            _tell(study, trial.number, state="PRUNED")
        except FloatingPointError as error:
            _diverged(study, trial, str(error))
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # given up meanwhile, for this machine was silent: another process has it now
        except BaseException:
            _tell(study, trial.number, state="FAIL")
            raise
        else:
            if math.isfinite(value):
                _tell(study, trial.number, value)
            else:
                _diverged(study, trial, f"the objective returned {value}")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"objective must return a number, got {describe(value)}; return the dev cost, or what is to be compared."
        ) from None


def _diverged(study: Any, trial: Any, reason: str) -> None:
    import optuna

    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("diverged", reason)
    _tell(study, trial.number, state="FAIL")


def _tell(study: Any, number: int, value: float | None = None, *, state: str | None = None) -> None:
    """Settle a trial; if it was given up meanwhile (this machine slept, say), whoever took it over settles it."""
    import optuna

    known = None if state is None else optuna.trial.TrialState[state]
    try:
        study.tell(number, value, state=known)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise


@contextmanager
def _alive(trial: Any) -> Iterator[None]:
    """Say who runs the trial, and again and again that it still runs."""
    import optuna

    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("owner", [socket.gethostname(), os.getpid()])
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT):
            count += 1
            try:
                trial.set_user_attr("beat", count)
            except Exception:  # settled meanwhile, or the store is away: the main thread will hear of it
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Watch:
    """Tells running trials from those whose process is gone: by its id on this machine, by its silence on others."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[Any, float]] = {}  # trial -> last sign of life and when it was first seen

    def give_up_lost(self, study: Any) -> None:
        """Mark them as failed, so that their places are enqueued again."""
        now = time.monotonic()
        for trial in _states(study, "RUNNING"):
            sign = trial.user_attrs.get("owner"), trial.user_attrs.get("beat")
            if self._heard.get(trial.number, (None, 0.0))[0] != sign:
                self._heard[trial.number] = sign, now
            silent = now - self._heard[trial.number][1] > LOST_AFTER
            if silent or _is_gone(trial.user_attrs.get("owner")):
                _tell(study, trial.number, state="FAIL")


def _is_gone(owner: Any) -> bool:
    """Whether a process of this machine has ended; False where that cannot be told."""
    if not owner or owner[0] != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(owner[1], 0)  # sends nothing
        return Path(f"/proc/{owner[1]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # not ours to look at, or no Linux
        return False
