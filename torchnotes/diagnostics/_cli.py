"""The command ``torchnotes probe``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from torchnotes._factory import load
from torchnotes.diagnostics.probing import probe
from torchnotes.diagnostics.report import SignalReport

HEALTHY, UNHEALTHY, NO_VERDICT = 0, 1, 2

_SHAPE = re.compile(r"(?P<shape>\d+(x\d+)*)(:(?P<kind>int|long)(:(?P<high>\d+))?)?")


@dataclass(frozen=True)
class ProbeConfig:
    """Run random inputs through a model and back, and say how the signal fares in every layer.

    Exit code: 0 healthy; 1 vanishing, exploding or non-finite; 2 no verdict (the probe could not be made).
    """

    factory: tyro.conf.Positional[str]
    """Where to find the model, as package.module:factory. The factory takes no arguments and returns a module, or
    (module, inputs), (module, inputs, target) or (module, inputs, target, loss); a module itself will do too."""
    input: tuple[str, ...] = ()
    """Shape of each random input, such as 32x784 (normal numbers) or 8x128:int:30000 (integers below 30000)."""
    target: str | None = None
    """classes:10 for random labels among 10, or a shape such as 32x1 for normal numbers; without one, a fixed random
    direction is sent back."""
    seed: int = 0
    """Seed of the random inputs and of PyTorch while the factory runs."""
    evaluation: bool = False
    """Put the model in evaluation mode first; otherwise it runs in the mode in which the factory left it."""
    json: bool = False
    """Print the report as JSON."""


def run(config: ProbeConfig) -> int:
    """Make the probe, print the report, return the exit code."""
    try:
        report = probe_from(config)
    except Exception as error:  # whatever the factory or the model raised, there is no verdict
        if config.json:
            print(json.dumps({"verdict": None, "error": f"{type(error).__name__}: {error}"}))
        print(f"no probe was made: {type(error).__name__}: {error}", file=sys.stderr)
        return NO_VERDICT
    print(json.dumps(report.to_dict(), indent=1, allow_nan=False) if config.json else str(report))
    return HEALTHY if report.healthy else UNHEALTHY


def probe_from(config: ProbeConfig) -> SignalReport:
    """Find the model, make its inputs, probe it."""
    torch.manual_seed(config.seed)
    made = load(config.factory)
    made = made() if not isinstance(made, nn.Module) else made
    parts: Sequence[Any] = made if isinstance(made, (tuple, list)) else (made,)
    model, inputs, target, loss = (*parts, None, None, None)[:4]
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"factory must return a torch.nn.Module, or a tuple that begins with one, got {type(model).__name__} "
            f"from {config.factory!r}."
        )
    generator = torch.Generator().manual_seed(config.seed)
    parameter = next(model.parameters(), torch.empty(0))
    if config.input:
        inputs = tuple(make_input(text, generator, parameter) for text in config.input)
    elif inputs is None:
        raise ValueError("input must be given where the factory returns only a model: --input 32x784, say.")
    if config.target is not None:
        target = make_target(config.target, inputs, generator, parameter)
    if config.evaluation:
        model.eval()
    return probe(model, inputs, target, loss=loss)


def make_input(text: str, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random tensor from its description, on the model's device and, if it floats, in its dtype.

    >>> make_input("2x3:int:10", torch.Generator().manual_seed(0), torch.empty(0)).shape
    torch.Size([2, 3])
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"input must be a shape such as 32x784, or 8x128:int:30000 for integers below 30000, got {text!r}."
        )
    shape = [int(size) for size in match["shape"].split("x")]
    if match["kind"]:
        return torch.randint(0, int(match["high"] or 2), shape, generator=generator).to(like.device)
    return torch.randn(shape, generator=generator).to(like)


def make_target(text: str, inputs: Any, generator: torch.Generator, like: Tensor) -> Tensor:
    """Random labels, one for each sample, or normal numbers of a shape."""
    kind, _, number = text.partition(":")
    if kind == "classes":
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"target must be classes:10, say, or a shape such as 32x1, got {text!r}.")
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        first = first[0] if isinstance(first, (tuple, list)) else first
        return torch.randint(0, int(number), (first.shape[0],), generator=generator).to(like.device)
    return make_input(text, generator, like)


def main(args: list[str]) -> int:
    """Parse the command line and run."""
    return run(tyro.cli(ProbeConfig, args=args, prog="torchnotes probe"))
