"""``python -m experiments``: the list, and what it runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS, chosen, one_line
from tests.experiments._runs import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False, timeout=200)


def test_lists_every_experiment_with_one_line() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    for name in EXPERIMENTS:
        assert re.search(rf"^{name} +{re.escape(one_line(name))}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_line_is_a_sentence(name: str) -> None:
    assert re.fullmatch(r"[A-Z].{20,110}\.", one_line(name))


def test_every_script_with_a_command_line_is_listed() -> None:
    scripts = [path for path in (ROOT / "experiments").rglob("*.py") if "\n    command_line(" in path.read_text()]
    names = {(path.parent if path.name == "__main__.py" else path.with_suffix("")).name for path in scripts}
    assert names == set(EXPERIMENTS)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"No experiment is called 'nets'; there are: .*vanishing_exploding.*, or all"):
        chosen(("nets",))
    assert chosen(("all",)) == EXPERIMENTS


def test_runs_what_is_named_and_passes_options_on(tmp_path: Path) -> None:
    done = run("vanishing_exploding", "--quick", "--depth", "2", "--log-dir", str(tmp_path))
    assert done.returncode == 1  # the experiment's own refusal: it was started, and was given the options
    assert "depth must be at least 3, got 2" in done.stderr
    assert "Traceback" not in done.stderr
