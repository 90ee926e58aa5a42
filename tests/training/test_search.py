"""search: scales, coarse to fine, workers, resuming, pruning, importance, errors."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from torchnotes.training import (
    Callback,
    Choice,
    Integer,
    LogUniform,
    OneMinusLog,
    ReportTo,
    Run,
    Uniform,
    _study,
    fit,
    search,
)

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]


def bowl(trial):
    """Least, 0, at lr = 0.01; depends on lr far more than on width."""
    return math.log10(trial.params["lr"] / 0.01) ** 2 + 1e-4 * abs(trial.params["width"] - 32) / 32


SPACE = {"lr": LogUniform(1e-4, 1.0), "width": Integer(8, 128, log=True)}


class Interrupted(Exception):
    pass


def _draws(dimension, count=4000):
    random = np.random.default_rng(0)
    return [dimension.draw(random) for _ in range(count)]


def test_each_decade_of_a_log_scale_is_drawn_as_often():
    values = np.array(_draws(LogUniform(1e-4, 1.0)))
    counts, _ = np.histogram(np.log10(values), bins=4, range=(-4, 0))
    # 1000 expected in each, standard deviation 27
    assert np.abs(counts - 1000).max() < 110
    assert values.min() >= 1e-4
    assert values.max() <= 1.0
    # on a linear scale nine in ten would be above 0.1
    assert np.mean(np.array(_draws(Uniform(1e-4, 1.0))) > 0.1) == pytest.approx(0.9, abs=0.02)


def test_one_minus_beta_is_on_a_log_scale():
    rest = 1 - np.array(_draws(OneMinusLog(0.9, 0.999)))
    counts, _ = np.histogram(np.log10(rest), bins=2, range=(-3, -1))
    assert np.abs(counts - 2000).max() < 130
    assert rest.min() >= 0.001 - 1e-12
    assert rest.max() <= 0.1 + 1e-12


def test_integers_and_choices_reach_every_value():
    assert set(_draws(Integer(2, 5))) == {2, 3, 4, 5}
    small = _draws(Integer(1, 100, log=True))
    assert min(small) == 1
    assert max(small) == 100
    assert np.median(small) == pytest.approx(9, abs=2)  # the geometric middle
    assert set(_draws(Choice("relu", "tanh", None))) == {"relu", "tanh", None}


def test_narrowing_keeps_the_scale_and_stays_inside():
    narrow = LogUniform(1e-4, 1.0).narrowed([0.01, 0.03], 20)  # 20 values on 4 decades: 0.2 apart
    assert narrow.low == pytest.approx(0.01 * 10**-0.2)
    assert narrow.high == pytest.approx(0.03 * 10**0.2)
    assert LogUniform(1e-4, 1.0).narrowed([1e-4, 1.0], 20) == LogUniform(1e-4, 1.0)
    beta = OneMinusLog(0.9, 0.999).narrowed([0.99], 20)
    assert 0.98 < beta.low < 0.99 < beta.high < 0.993
    assert Integer(0, 100).narrowed([50, 51], 20) == Integer(45, 56)
    assert Integer(0, 100).narrowed([0, 0], 20) == Integer(0, 5)
    assert Choice(1, 2, 3).narrowed([3, 1, 3], 20) == Choice(1, 3)
    assert Choice(1, 2, 3).narrowed([3], 20).draw(np.random.default_rng(0)) == 3


def test_coarse_to_fine_finds_a_closer_value_than_coarse_alone():
    # over several seeds: by luck one alone may be near
    coarse = [search(bowl, SPACE, trials=24, seed=seed).best_value for seed in range(6)]
    fine = [search(bowl, SPACE, trials=24, rounds=3, seed=seed).best_value for seed in range(6)]
    assert np.median(fine) < 0.5 * np.median(coarse)
    result = search(bowl, SPACE, trials=24, rounds=3)
    by_round = [[math.log10(t.params["lr"]) for t in result.trials if t.round == r] for r in range(3)]
    assert [len(values) for values in by_round] == [8, 8, 8]
    assert np.ptp(by_round[0]) > np.ptp(by_round[1]) > np.ptp(by_round[2])


def test_reproducible_and_dependent_on_the_seed():
    first, again, other = (search(bowl, SPACE, trials=10, rounds=2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.trials != other.trials


def test_random_tries_a_new_rate_each_time():
    result = search(bowl, SPACE, trials=25)
    assert len({trial.params["lr"] for trial in result.trials}) == 25  # a 5 × 5 grid has 5


def test_maximising():
    result = search(lambda t: -bowl(t), SPACE, trials=10, direction="maximize")
    assert result.best_value == max(trial.value for trial in result.trials)


def test_importance_names_what_matters():
    result = search(bowl, SPACE, trials=30)
    assert list(result.importance) == ["lr", "width"]
    assert result.importance["lr"] > 0.9
    assert "lr = " in str(result)
    assert "importance" in str(result)


def test_two_workers_try_what_one_tries(tmp_path):
    one = search(bowl, SPACE, trials=8, seed=3)
    two = search(bowl, SPACE, trials=8, seed=3, workers=2, store=tmp_path / "journal")
    assert two.trials == one.trials


@pytest.mark.parametrize("store", ["journal", "sqlite"])
@pytest.mark.parametrize("at", [1, 5, 8])
def test_an_interrupted_search_goes_on(tmp_path, store, at):
    store = tmp_path / "journal" if store == "journal" else f"sqlite:///{tmp_path}/study.db"
    calls = []

    def objective(trial):
        calls.append(trial.number)
        if len(calls) == at:
            raise Interrupted
        return bowl(trial)

    with pytest.raises(Interrupted):
        search(objective, SPACE, trials=9, rounds=3, store=store)
    result = search(objective, SPACE, trials=9, rounds=3, store=store)
    assert result.trials == search(bowl, SPACE, trials=9, rounds=3).trials
    assert sorted({*calls}) == list(range(9))
    assert len(calls) == 10  # only the one that broke off is tried again
    assert search(objective, SPACE, trials=9, rounds=3, store=store) == result
    assert len(calls) == 10


@pytest.mark.parametrize("owner", ["silent", "gone", "slow"])
def test_a_trial_left_running_by_a_killed_process_is_tried_again(tmp_path, monkeypatch, owner):
    store = tmp_path / "journal"
    search(bowl, SPACE, trials=3, store=store)
    study = _study.open_study(store, "search", "minimize", prune=True)
    study.enqueue_trial({"lr": 0.5, "width": 9}, user_attrs={"place": 3, "round": 0})
    trial = study.ask()  # and then killed
    if owner == "gone":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        trial.set_user_attr("owner", [socket.gethostname(), gone.pid])  # seen at once, without waiting a minute
    else:
        trial.set_user_attr("owner", ["another machine", 1])
        monkeypatch.setattr(_study, "LOST_AFTER", 0.2)
    result = search(bowl, SPACE, trials=5, store=store)
    assert result.trials == search(bowl, SPACE, trials=5).trials
    if owner == "slow":  # it was not dead after all: its result comes too late, and changes nothing
        _study._run(study, trial, lambda trial: trial.report(1.0, 0))
        _study._run(study, trial, lambda trial: 0.0)
        _study._run(study, trial, lambda trial: math.nan)
        assert search(bowl, SPACE, trials=5, store=store) == result


SHARED = """
    import os, signal, sys, time
    from tests.training.test_search import SPACE, bowl
    from torchnotes.training import search

    store, dies = sys.argv[1], sys.argv[2] == "dies"
    done = []
    def objective(trial):
        done.append(trial.number)
        time.sleep(0.1)  # so that both have their share
        if dies and len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return bowl(trial)

    result = search(objective, SPACE, trials=int(sys.argv[3]), rounds=2, store=store, prune=False)
    print([repr(trial) for trial in result.trials], sorted(done), sep="\\n")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize(("store", "fate", "trials"), [("journal", "dies", 8), ("sqlite", "lives", 3)])
def test_processes_on_one_store_share_the_trials_out_even_if_one_is_killed(tmp_path, store, fate, trials):
    store = str(tmp_path / "journal") if store == "journal" else f"sqlite:///{tmp_path}/study.db"
    command = [sys.executable, "-c", textwrap.dedent(SHARED), store]
    running = [
        subprocess.Popen(
            [*command, each, str(trials)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for each in ("lives", fate)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    # The second may have come too late for the trial in which it dies.
    assert [process.returncode for process in running] in ([0, -signal.SIGKILL if fate == "dies" else 0], [0, 0]), (
        outputs
    )
    expected = str([repr(trial) for trial in search(bowl, SPACE, trials=trials, rounds=2).trials])
    tried = []
    for process, (stdout, _) in zip(running, outputs, strict=True):
        if process.returncode == 0:
            result, done = stdout.splitlines()
            assert result == expected
            tried += json.loads(done)
    assert len(tried) == len(set(tried))  # no trial twice
    assert len(tried) >= trials - 1  # all but the first of the process that was killed in its second


def test_poor_trials_are_pruned():
    def objective(trial):
        for epoch in range(20):
            trial.report(epoch, bowl(trial) + 1 / (epoch + 1))
        return bowl(trial)

    pruned = search(objective, SPACE, trials=30)
    states = [trial.state for trial in pruned.trials]
    assert states.count("pruned") >= 5
    assert pruned.best_value == search(objective, SPACE, trials=30, prune=False).best_value
    assert all(trial.value is None for trial in pruned.trials if trial.state == "pruned")


def test_a_run_of_fit_is_pruned_between_epochs():
    epochs = []

    def objective(trial):
        torch.manual_seed(trial.number)
        model = torch.nn.Linear(2, 1)
        x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
        data = (x, x.sum(1, keepdim=True))
        optimizer = torch.optim.SGD(model.parameters(), trial.params["lr"])
        loss = torch.nn.functional.mse_loss
        run = fit(
            model,
            data,
            loss=loss,
            optimizer=optimizer,
            epochs=8,
            dev=data,
            callbacks=[Epochs(), ReportTo(trial)],
            progress=False,
        )
        return run.history[-1]["dev_loss"]

    class Epochs(Callback):
        def on_epoch(self, run):
            epochs.append(run.epoch)

    result = search(objective, {"lr": LogUniform(1e-4, 0.5)}, trials=14)
    states = [trial.state for trial in result.trials]
    assert states.count("pruned") >= 3
    assert states.count("complete") >= 5
    assert len(epochs) < 14 * 8
    with pytest.raises(KeyError, match="ReportTo reports 'dev_accuracy', got a record of epoch, train_loss"):
        ReportTo(None, "dev_accuracy").on_epoch(Run(None, None, history=[{"epoch": 1, "train_loss": 1.0}]))


def test_diverging_trials_count_as_failed():
    def objective(trial):
        if trial.params["lr"] > 0.1:
            raise FloatingPointError("the loss must stay finite")
        return math.nan if trial.params["lr"] > 0.03 else bowl(trial)

    result = search(objective, SPACE, trials=20, rounds=2)
    assert {trial.state for trial in result.trials} == {"complete", "failed"}
    assert len(result.trials) == 20
    assert result.best_params["lr"] <= 0.03
    with pytest.raises(ValueError, match="at least one trial must end with a value, got none of 4"):
        search(lambda t: math.inf, SPACE, trials=4)


def test_the_terminal_and_optunas_own_settings_are_left_alone(capsys):
    before = optuna.logging.get_verbosity()
    search(bowl, SPACE, trials=3)
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (lambda: search(bowl, {}), ValueError, "space must hold at least one hyperparameter, got none"),
        (lambda: search(bowl, {"lr": (0, 1)}), TypeError, r"space\['lr'\] must be LogUniform, .*got tuple \(0, 1\)"),
        (lambda: search(bowl, SPACE, trials=0), ValueError, "trials must be an integer of at least 1, got 0"),
        (lambda: search(bowl, SPACE, trials=2, rounds=3), ValueError, "trials must be at least rounds, got 2 and 3"),
        (lambda: search(bowl, SPACE, keep=0), ValueError, r"keep must lie in \(0, 1\]"),
        (lambda: search(bowl, SPACE, direction="down"), ValueError, "direction must be 'minimize' or 'maximize'"),
        (lambda: search(lambda t: 0.0, SPACE, workers=2), TypeError, "objective must be importable to run in several"),
        (lambda: LogUniform(0.0, 1.0), ValueError, r"low must lie in \(0, inf\), got 0\.0"),
        (lambda: LogUniform(1.0, 0.1), ValueError, r"low must be below high, got 1\.0 and 0\.1"),
        (lambda: OneMinusLog(0.9, 1.0), ValueError, r"high must lie in \[0, 1\), got 1\.0; β stays below 1"),
        (lambda: Integer(0, 5, log=True), ValueError, r"low must lie in \(0, inf\), got 0"),
        (lambda: Uniform("a", 1), TypeError, "low must be a number"),
        (lambda: Integer(1.5, 3), TypeError, r"low must be a whole number, got float 1\.5; use Uniform"),
        (
            lambda: Choice([1], [2]),
            TypeError,
            r"values of Choice must be numbers, strings, .*got list \[1\]; choose am",
        ),
        (lambda: search(lambda t: None, SPACE, trials=1), TypeError, "objective must return a number, got NoneType"),
        (lambda: search(bowl, SPACE, store="no/such/file"), FileNotFoundError, "directory of the store must exist, go"),
        (lambda: Choice(1), ValueError, r"Choice must have at least 2 values, got \(1,\)"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()


@pytest.mark.parametrize(
    ("change", "wording"),
    [
        (
            {"space": {"lr": LogUniform(1e-3, 1.0), "width": SPACE["width"]}},
            r"same space, got lr: LogUniform\(low=0\.0001",
        ),
        ({"space": {"units": Integer(1, 9)}}, "same space, got .* there and units: Integer"),
        ({"direction": "maximize"}, "same direction, got minimize there and maximize here; use the same, another name"),
        ({"seed": 1}, "same seed, got 0 there and 1 here"),
    ],
)
def test_a_store_of_another_search_is_refused(tmp_path, change, wording):
    first = search(bowl, SPACE, trials=2, store=tmp_path / "journal")
    call = {"space": SPACE, "trials": 2, "store": tmp_path / "journal", **change}
    with pytest.raises(ValueError, match=wording):
        search(bowl, call.pop("space"), **call)
    assert search(bowl, SPACE, trials=3, store=tmp_path / "journal").trials[:2] == first.trials
