"""List the experiments, or run some of them: ``python -m experiments [NAME ... | all] [OPTIONS]``."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

# In the order of the notes; the line shown for each is the first of its docstring.
EXPERIMENTS = (
    "logistic_regression",
    "shallow_and_deep",
    "init_symmetry",
    "bias_variance",
    "regularization",
    "dropout",
    "input_normalization",
    "gradient_checking",
    "vanishing_exploding",
    "mini_batches",
    "averages",
    "optimizers",
    "decays",
    "hyperparameter_search",
    "batch_norm",
    "softmax",
)


@dataclass(frozen=True)
class Choice:
    """List the experiments, or run some of them. Any other option goes to each: --quick, --device, --seed, ..."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which to run, or "all"; none lists them."""


def one_line(name: str) -> str:
    """What an experiment is about: the first line of its docstring, read without importing it."""
    spec = importlib.util.find_spec(f"experiments.{name}")
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The experiments meant; an unknown name ends the program with the known ones."""
    if names == ("all",):
        return EXPERIMENTS
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        sys.exit(f"No experiment is called {unknown[0]!r}; there are: {', '.join(EXPERIMENTS)}, or all.")
    return names


def main() -> int:
    """Run what the command line names, each in a process of its own; returns the number of those that failed."""
    choice, options = tyro.cli(Choice, prog="python -m experiments", return_unknown_args=True)
    names = chosen(choice.names)
    if not names:
        width = max(map(len, EXPERIMENTS))
        print("\n".join(f"{name:{width}}  {one_line(name)}" for name in EXPERIMENTS))
        print("\nRun one with `python -m experiments NAME`, several by their names, or `all`; --quick takes seconds.")
        return 0
    failed = []
    for name in names:
        if len(names) > 1:
            print(f"\n=== {name}: {one_line(name)}", flush=True)
        try:
            code = subprocess.run([sys.executable, "-m", f"experiments.{name}", *options], check=False).returncode
        except KeyboardInterrupt:
            return 130
        if code:
            failed.append(name)
    if failed and len(names) > 1:
        print(f"\nFailed: {', '.join(failed)}.")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
