"""How fast every coordinate of a gradient is checked: this checker, a plain loop, and torch.autograd.gradcheck.

    python -m experiments.benchmarks.gradcheck_speed

One process, one function: the cross-entropy of a 64-100-50-10 tanh net (12,060 parameters) over 64 handwritten digits,
in float64, pixels from 0 to 1, about half of them 0; ``--data normal`` takes normal numbers instead. Ratios are what
counts; times depend on the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchnotes.gradcheck import check_gradients

SIZES = (64, 100, 50, 10)
SAMPLES = 64


@dataclass(frozen=True)
class Config:
    """What to time; PyTorch's slow mode takes about half a minute of a quiet machine."""

    data: Literal["digits", "normal"] = "digits"
    slow_mode: bool = True
    repeats: int = 5
    output: Path | None = None


def build(data: str = "normal") -> tuple[nn.Sequential, Tensor, Tensor]:
    """The net, its inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in zip(SIZES[:-1], SIZES[1:], strict=True):  # noqa: RUF007 - as in the other benchmarks
        layer = nn.Linear(n_in, n_out).double()
        nn.init.normal_(layer.weight, std=n_in**-0.5, generator=generator)
        layers += [layer, nn.Tanh()]
    if data == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x = torch.as_tensor(images[:SAMPLES], dtype=torch.float64) / 16
        return nn.Sequential(*layers[:-1]), x, torch.as_tensor(labels[:SAMPLES])
    x = torch.randn(SAMPLES, SIZES[0], generator=generator, dtype=torch.float64)
    return nn.Sequential(*layers[:-1]), x, torch.randint(SIZES[-1], (SAMPLES,), generator=generator)


def plain_loop(model: nn.Sequential, x: Tensor, y: Tensor, eps: float = 1e-7) -> Tensor:
    """The textbook's loop: two evaluations of J for every parameter."""
    parts = []
    with torch.no_grad():
        for p in model.parameters():
            flat = p.view(-1)
            for i in range(len(flat)):
                kept = float(flat[i])
                flat[i] = kept + eps
                up = F.cross_entropy(model(x), y)
                flat[i] = kept - eps
                down = F.cross_entropy(model(x), y)
                flat[i] = kept
                parts.append((up - down) / (2 * eps))
    return torch.stack(parts)


def differences(model: nn.Sequential, x: Tensor, y: Tensor, eps: float = 1e-7) -> Tensor:
    """The same differences as the checker takes them."""
    from torchnotes.gradcheck._chain import ChainEvaluator, chain_of
    from torchnotes.gradcheck._measure import derivative
    from torchnotes.gradcheck._objective import Cost, model_objective
    from torchnotes.gradcheck.differences import STENCILS

    cost = Cost(model, F.cross_entropy, None)
    objective = model_objective(cost, x, y, None, ())
    base, _ = objective.prepare()
    objective.rows = torch.ones(1, 1, dtype=torch.float64)
    found = chain_of(cost, objective, x, y)
    assert found is not None
    chain = ChainEvaluator(objective, base, *found, memory=1 << 28)
    return torch.cat(
        [
            derivative(chain, t, torch.arange(p.numel()), eps, STENCILS["central"])[0]
            for t, p in enumerate(objective.tensors)
        ]
    )


def tanh_alone(x: Tensor) -> None:
    """The activations that the checker computes afresh, alone, in blocks that fit the cache.

    All weights of a unit are read off its curve, which is measured at four shifts (±r and ±0.7 r) of every sample, its
    bias by itself at two: six evaluations of each unit of the first hidden layer and of the whole second one after it,
    and of each unit of the second. (Weight by weight it would be 128 and 200.)
    """
    evaluations = 6 * len(x) * (SIZES[1] * (1 + SIZES[2]) + SIZES[2])
    block = torch.zeros(2**17, dtype=torch.float64)
    for size in [len(block)] * (evaluations // len(block)) + [evaluations % len(block)]:
        torch.tanh(block[:size])


def gradcheck_slow(model: nn.Sequential, x: Tensor, y: Tensor) -> bool:
    """PyTorch's own check in its default mode, on the same parameters."""
    names = [n for n, _ in model.named_parameters()]

    def cost(*values: Tensor) -> Tensor:
        out: Tensor = F.cross_entropy(torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,)), y)
        return out

    return bool(torch.autograd.gradcheck(cost, tuple(model.parameters())))


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The least of several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main(config: Config) -> dict[str, float]:
    """Time all of them in one process and print the ratios."""
    model, x, y = build(config.data)
    ours, loop = differences(model, x, y), plain_loop(model, x, y)
    apart = float((ours - loop).abs().max())
    times = {
        "differences, read off the units' curves": seconds(lambda: differences(model, x, y), config.repeats),
        "check_gradients, the whole report": seconds(
            lambda: check_gradients(model, x, y, loss=F.cross_entropy), min(2, config.repeats)
        ),
        "tanh alone, of what differs": seconds(lambda: tanh_alone(x), config.repeats),
        "differences, plain loop": seconds(lambda: plain_loop(model, x, y), 1),
    }
    if config.slow_mode:
        times["torch.autograd.gradcheck, slow mode"] = seconds(lambda: gradcheck_slow(model, x, y), 1)
    first = next(iter(times.values()))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; largest difference of the two loops {apart:.1e}"
    )
    for name, taken in times.items():
        print(f"{name:<46} {taken:8.3f} s   {taken / first:7.1f} ×")
    if config.output is not None:
        config.output.write_text(json.dumps({**times, "apart": apart}, indent=1) + "\n")
    return times


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
