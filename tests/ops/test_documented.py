"""docs/ops.md says what each op keeps and what it is differentiable in; this reads it and looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchnotes import ops

PAGE = (Path(__file__).parents[2] / "docs" / "ops.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """Op → the other cells of its row, in the section under that heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


KEPT = {op: cells[1].split(", ") for op, cells in table("What is kept").items()}
DIFFERENTIABLE = {op: cells[0].split(", ") for op, cells in table("Which derivatives exist").items()}
BEYOND = {op: [c for c in cells[1].split(", ") if c] for op, cells in table("Which derivatives exist").items()}


def leaf(*shape: int) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (0.1 + 0.8 * drawn).requires_grad_()


def arguments(op: str) -> dict[str, Any]:
    """Every tensor argument of the op, differentiable where it can be, and the options that make it use them all."""
    x = leaf(5, 3)
    return {
        "linear": {"input": x, "weight": leaf(4, 3), "bias": leaf(4)},
        "dense": {"input": x, "weight": leaf(4, 3), "bias": leaf(4), "activation": "relu"},
        "softmax": {"input": x, "dim": 1},
        "log_softmax": {"input": x, "dim": 1},
        "binary_cross_entropy": {"input": x, "target": leaf(5, 3), "weight": leaf(3)},
        "binary_cross_entropy_with_logits": {
            "input": x, "target": leaf(5, 3), "weight": leaf(3), "pos_weight": leaf(5, 3),
        },
        "cross_entropy": {
            "input": x, "target": torch.tensor([0, 2, 1, 1, -100]), "weight": leaf(3).detach(), "label_smoothing": 0.1,
        },
        "dropout": {"input": x, "keep_prob": 0.5, "generator": torch.Generator().manual_seed(2)},
        "batch_norm": {
            "input": x, "running_mean": leaf(3).detach(), "running_var": leaf(3).detach(), "weight": leaf(3),
            "bias": leaf(3), "training": True,
        },
        "l1_penalty": {"weights": x, "lambd": 0.5, "m": 2},
        "l2_penalty": {"weights": x, "lambd": 0.5, "m": 2},
    }.get(op, {"input": x})  # fmt: skip


def call(op: str, given: dict[str, Any]) -> Tensor:
    return (
        getattr(ops, op)(given["input"], **{k: v for k, v in given.items() if k != "input"})
        if "input" in given
        else (getattr(ops, op)(**given))
    )


PUBLIC = sorted(name for name in vars(ops) if callable(getattr(ops, name)) and not name.startswith("_"))


def test_every_public_op_is_in_both_tables():
    assert sorted(KEPT) == PUBLIC
    assert sorted(DIFFERENTIABLE) == PUBLIC


@pytest.mark.parametrize("op", PUBLIC)
def test_what_is_kept(op: str):
    given, saved = arguments(op), []
    if op.startswith("binary"):
        del given["weight"]  # its product with the losses is PyTorch's own multiplication, which keeps both
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = call(op, given)
    names = {t.untyped_storage().data_ptr(): name for name, t in given.items() if isinstance(t, Tensor)}
    names[y.untyped_storage().data_ptr()] = "output"
    found = [names.get(t.untyped_storage().data_ptr()) or own_name(t) for t in saved if t.numel()]
    if "μ" in KEPT[op]:
        found = [
            name if name != "(3,)" else ["μ", "σ²"][index - found.index("(3,)")] for index, name in enumerate(found)
        ]
    assert sorted(set(found)) == sorted(KEPT[op])


def own_name(t: Tensor) -> str:
    if t.dtype == torch.bool:
        return "mask"
    return "log ŷ" if t.shape == (5, 3) else str(tuple(t.shape))


def twin(op: str) -> Callable[..., Tensor]:
    return getattr(F, op)


@pytest.mark.parametrize("op", PUBLIC)
def test_what_it_is_differentiable_in(op: str):
    given = arguments(op)
    wanted = [name for name, t in given.items() if isinstance(t, Tensor) and t.requires_grad]
    assert sorted(wanted) == sorted(DIFFERENTIABLE[op])
    y = call(op, given)
    first = torch.autograd.grad(y.square().sum(), [given[name] for name in wanted], create_graph=True)
    assert all(g is not None and g.requires_grad for g in first)
    torch.autograd.grad(sum(g.square().sum() for g in first), [given[name] for name in wanted])
    for name in wanted:
        frozen = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments(op).items()}
        for unwanted in ("generator", "running_mean", "running_var"):  # vmap can update no running statistic
            frozen.pop(unwanted, None)
        if op == "batch_norm":
            frozen.update(running_mean=None, running_var=None)
        primal = frozen[name]

        def alone(v: Tensor, name: str = name, frozen: dict[str, Any] = frozen) -> Tensor:
            return call(op, {**frozen, name: v}).square().sum()

        with torch.random.fork_rng():
            torch.func.jvp(alone, (primal,), (torch.ones_like(primal),))
            assert torch.vmap(torch.func.grad(alone), randomness="same")(torch.stack([primal, primal])).shape[0] == 2


@pytest.mark.parametrize("op", [op for op in PUBLIC if BEYOND[op]])
def test_where_the_twin_stops(op: str):
    given = arguments(op)
    for name in BEYOND[op]:
        frozen = {k: v.detach() if isinstance(v, Tensor) and k != name else v for k, v in given.items()}
        with pytest.raises(RuntimeError, match="not differentiable with respect to argument"):
            twin(op)(**frozen)
        assert call(op, frozen).requires_grad


def test_the_probabilities_of_cross_entropy():
    q, w = leaf(5, 3), leaf(3)
    assert all(g is not None for g in torch.autograd.grad(ops.cross_entropy(leaf(5, 3), q, w), (q, w)))
