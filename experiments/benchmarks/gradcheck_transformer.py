"""A 124-million-parameter transformer checked along random directions: right, and with one planted wrong entry.

    python -m experiments.benchmarks.gradcheck_transformer --output transformer.json

12 layers, 768 wide, tied embeddings, float64, 32 tokens. Needs about 8 GB of memory and some minutes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchnotes.gradcheck import GradientReport, check_gradients


@dataclass(frozen=True)
class Config:
    """The size of the transformer, and where the wrong entry is planted."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024
    tokens: int = 32
    seed: int = 0
    planted_layer: int = 5
    planted_row: int = 1234
    planted_column: int = 567
    memory: int = 3 << 30
    output: Path | None = None


class PlantedWeight(torch.autograd.Function):
    """The identity on a weight, whose backward adds the gradient's rms to one entry."""

    @staticmethod
    def forward(ctx, weight, row, column):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.where = row, column
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: D102
        grad = grad.clone()
        grad[ctx.where] += grad.square().mean().sqrt()
        return grad, None, None


class Block(nn.Module):
    """Pre-norm attention and a GELU layer four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.planted: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.ln1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.proj(attended)
        weight = self.up.weight if self.planted is None else PlantedWeight.apply(self.up.weight, *self.planted)
        out: Tensor = x + self.down(F.gelu(F.linear(self.ln2(x), weight, self.up.bias)))
        return out


class Transformer(nn.Module):
    """A causal language model; the output layer is the embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) to logits (batch × time, vocabulary)."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight).flatten(0, 1)


def build(config: Config) -> tuple[Transformer, Tensor, Tensor]:
    """The model in float64, its tokens and the tokens to predict."""
    torch.manual_seed(config.seed)
    model = Transformer(config).double()
    tokens = torch.randint(config.vocabulary, (1, config.tokens + 1))
    return model, tokens[:, :-1], tokens[0, 1:]


def check(model: Transformer, tokens: Tensor, target: Tensor, config: Config) -> GradientReport:
    """The projected check."""
    return check_gradients(
        model, tokens, target, loss=F.cross_entropy, method="projected", max_memory=config.memory, seed=config.seed
    )


def main(config: Config) -> dict[str, object]:
    """Check the right model and the wrong one; print and return what was found."""
    model, tokens, target = build(config)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, float64, {config.tokens} tokens", flush=True)
    results: dict[str, object] = {"parameters": count, "torch": torch.__version__}
    for name in ("right", "planted"):
        block = model.blocks[config.planted_layer]
        assert isinstance(block, Block)
        block.planted = None if name == "right" else (config.planted_row, config.planted_column)
        start = time.perf_counter()
        report = check(model, tokens, target, config)
        worst = [str(e) for e in report.worst(3)]
        print(f"{name}: {report.headline()}\n  {report.reason}; {report.evaluations:.0f} forward-equivalents; {worst}")
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        results[name] = {
            "verdict": report.verdict, "ratio": report.ratio, "floor": report.noise_floor, "interval": report.interval,
            "smallest_visible": report.smallest_visible, "forward_equivalents": report.evaluations,
            "reason": report.reason, "worst": worst, "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
    if config.output is not None:
        config.output.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
