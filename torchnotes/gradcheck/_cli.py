"""The command ``torchnotes gradcheck``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from torch import nn

from torchnotes._factory import load
from torchnotes.gradcheck.check import check_gradients
from torchnotes.gradcheck.function import check_function
from torchnotes.gradcheck.report import GradientReport

CORRECT, WRONG, NO_VERDICT = 0, 1, 2


@dataclass(frozen=True)
class GradcheckConfig:
    """Check the gradients of a model or function against numerical differences.

    Exit code: 0 correct; 1 wrong or suspect; 2 no verdict (inconclusive, or the check could not be made).
    """

    factory: tyro.conf.Positional[str]
    """Where to find what is checked, as package.module:factory. The factory takes no arguments and returns either
    (model, inputs, target, loss), of which the last two may be left out, or a dict of check_gradients' arguments;
    for a plain function, (function, input, ...)."""
    eps: float = 1e-7
    """The ε of the notes' ratio."""
    method: Literal["exact", "projected"] = "exact"
    """Every coordinate, or random directions for large models."""
    dropout: Literal["frozen", "off"] = "frozen"
    """Hold dropout's masks fixed, or switch it off."""
    seed: int = 0
    """Chooses sampled entries and directions."""
    json: bool = False
    """Print the report as JSON."""
    markdown: bool = False
    """Print the report as Markdown."""


def run(config: GradcheckConfig) -> int:
    """Make the check, print the report, return the exit code."""
    try:
        report = check_from(load(config.factory)(), config)
    except Exception as error:  # whatever the factory or the model raised, no check was made
        if config.json:
            print(json.dumps({"verdict": None, "error": str(error)}))
        print(f"no check was made: {error}", file=sys.stderr)
        return NO_VERDICT
    text = report.to_json() if config.json else report.to_markdown() if config.markdown else report.to_table(_width())
    print(text)
    return {"correct": CORRECT, "inconclusive": NO_VERDICT}.get(report.verdict, WRONG)


def _width() -> int:
    return min(100, int(os.environ.get("COLUMNS", "100")))


def check_from(made: Any, config: GradcheckConfig) -> GradientReport:
    """Check what a factory returned."""
    options: dict[str, Any] = {"eps": config.eps, "seed": config.seed}
    for_model = {**options, "method": config.method, "dropout": config.dropout}
    if isinstance(made, Mapping):
        return check_gradients(**{**for_model, **made})
    if not isinstance(made, (tuple, list)) or len(made) < 2 or not callable(made[0]):
        raise TypeError(
            "factory must return (model, inputs, target, loss), (function, input, ...) or a dict, "
            f"got {type(made).__name__}; see torchnotes gradcheck --help."
        )
    if not isinstance(made[0], nn.Module):
        return check_function(made[0], *made[1:], **options)
    model, inputs, *rest = made
    target, loss = (*rest, None, None)[:2]
    if len(rest) == 1 and callable(rest[0]):
        target, loss = None, rest[0]
    return check_gradients(model, inputs, target, loss=loss, **for_model)


def main(args: list[str]) -> int:
    """Parse the command line and run."""
    return run(tyro.cli(GradcheckConfig, args=args, prog="torchnotes gradcheck"))
