"""The checks themselves: one function, one module, a whole model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchnotes._checks import check_in_range, describe
from torchnotes.gradcheck._assemble import Context, assemble, reason_of
from torchnotes.gradcheck._batched import BatchEvaluator, agrees, model_batch, penalty_batch
from torchnotes.gradcheck._chain import ChainEvaluator, chain_of
from torchnotes.gradcheck._directions import Probe
from torchnotes.gradcheck._distributed import refuse_unlike, shared
from torchnotes.gradcheck._evaluate import Evaluator, LoopEvaluator
from torchnotes.gradcheck._judge import Evidence, Lens, gather
from torchnotes.gradcheck._modules import check_modules
from torchnotes.gradcheck._nothing import Gradients, refuse_absent, refuse_empty, refuse_empty_batch, refuse_idle
from torchnotes.gradcheck._objective import (
    Cost,
    Loss,
    Objective,
    Penalty,
    double_cost,
    label,
    model_objective,
    refuse_complex,
    tensors_in,
    to_double,
)
from torchnotes.gradcheck._precision import precision_finding, rounding
from torchnotes.gradcheck._progress import Progress, Watched
from torchnotes.gradcheck._progress import progress as show_progress
from torchnotes.gradcheck._projected import EVALUATIONS, check_projected
from torchnotes.gradcheck._state import Dropout, dropout_mode, padding_rows, preserved
from torchnotes.gradcheck._written import bounded_rows, fingerprints, refuse_written
from torchnotes.gradcheck.compare import worst_verdict
from torchnotes.gradcheck.function import check_function
from torchnotes.gradcheck.recheck import warn_if_training
from torchnotes.gradcheck.report import Finding, GradientMismatch, GradientReport

Method = Literal["exact", "projected"]


def check_gradients(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    *,
    loss: Loss | None = None,
    penalty: Penalty | None = None,
    eps: float = 1e-7,
    method: Method = "exact",
    dropout: Dropout = "frozen",
    parameters: Sequence[str] | None = None,
    modules: bool | None = None,
    max_evaluations: int = 400,
    max_memory: int = 256 << 20,
    generators: Sequence[torch.Generator] = (),
    progress: bool | None = None,
    seed: int = 0,
) -> GradientReport:
    """Check the gradient of a model's cost J against numerical differences, parameter by parameter.

    J(θ) = loss(model(inputs), target) + penalty(model), with θ every W and b that requires grad, joined into one
    vector. The notes' ratio ‖dθ_approx − dθ‖ / (‖dθ_approx‖ + ‖dθ‖) is taken with the two-sided difference at ``eps``;
    beside it stand the ratio that round-off alone would give, from a difference table of this J at this θ, and the
    difference formula's own error. Where those are too coarse for a verdict, the differences are taken again with a
    better step and a five-point stencil, and entries that stand out are measured one by one.

    The arithmetic is float64: a model of lower precision is checked on a float64 copy. Whatever the outcome,
    parameters, buffers, modes, ``.grad`` and random states are afterwards what they were before.

    Args:
        model: any ``nn.Module``.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments for the model.
        target: passed to the loss as its second argument; None if the loss takes only the output.
        loss: ``loss(output, target)`` returning a scalar; None if the model itself returns the cost.
        penalty: ``penalty(model)`` returning a scalar, checked by itself as well as within J.
        eps: the ε of the notes' ratio; a projected check chooses its own, and reports it.
        method: ``"exact"`` takes a difference at every coordinate; ``"projected"`` along random directions, for models
            too large for that, and finds wrong entries by group testing.
        dropout: ``"frozen"`` holds every mask fixed, ``"off"`` switches dropout off (keep_prob 1).
        parameters: names of parameters, or of modules, to which the check is confined; None for all.
        modules: whether to check each module's own backward too, at the input it saw, so as to name the culprit;
            by default with ``"exact"``.
        max_evaluations: evaluations of J after which a projected check stops searching.
        max_memory: bytes that evaluations taken together may hold at once.
        generators: random generators that J draws from, beyond the default ones and those kept on modules.
        progress: whether to show a progress bar beyond two seconds; by default where standard error is a terminal.
        seed: chooses the entries at which errors are sampled.

    Returns:
        The report; ``print`` it.

    Raises:
        TypeError: complex parameters or inputs.
        ValueError: J is not a finite scalar, differs between two identical calls, or depends on no parameter; or there
            is nothing to check: no parameter has an entry, or the batch has no sample.

    Source: the notes, "gradient checking" and "notes on implementing it"; SPEC D3 to D9.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> report = check_gradients(model, x, y, loss=nn.functional.mse_loss)
    >>> report.verdict
    'correct'
    >>> list(report.by_parameter)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    _check_arguments(model, eps, method)
    start = time.perf_counter()
    original = Cost(model, loss, penalty)
    refuse_complex(original, inputs)
    warn_if_training(model)
    with ExitStack() as stack:
        cost = stack.enter_context(double_cost(original))
        data = (to_double(inputs), to_double(target))
        objective = model_objective(cost, *data, parameters, generators)
        stack.enter_context(preserved(cost, objective.random))
        stack.enter_context(dropout_mode(cost, dropout))
        bounded = stack.enter_context(bounded_rows(cost.model, objective))
        padding = stack.enter_context(padding_rows(cost.model))
        notes = refuse_empty(objective.names, objective.tensors, "parameters")
        y, more = _first_evaluation(objective, original if cost is not original else None, tensors_in(data))
        notes += more + padding + bounded
        coarse = _precision(objective)
        separate = len(y) == 2
        objective.rows = _rows(separate, method).to(y.device)
        names = ["J", "data cost", "penalty"] if separate else ["J"]
        exact = objective.gradients()
        coarse += _refuse_still(objective, y, exact, tensors_in(data))
        wanted = method == "exact" if modules is None else modules
        refuse_unlike(objective.tensors)
        findings, culprits = _modules(cost, objective, seed, progress) if wanted else ([], [])
        if method == "projected":
            with show_progress(EVALUATIONS, progress) as display:
                report = _projected(objective, y, exact[0], seed, max_memory, max_evaluations, display)
            verdict = worst_verdict([report.verdict, *(f.verdict for f in (*findings, *coarse))])
            return replace(
                report,
                verdict=verdict,
                reason=report.reason if verdict == report.verdict else reason_of(verdict, {}, coarse, findings),
                modules=tuple(findings),
                findings=tuple(coarse),
                culprits=tuple(culprits),
                notes=(*report.notes, *notes),
                seconds=time.perf_counter() - start,
            )
        count = 4 * sum(t.numel() for t in objective.tensors)
        with show_progress(count, progress) as display:
            candidates = _evaluators(cost, objective, y, data, max_memory)
            evidences, used = _exact(objective, y, exact, eps, seed, candidates, display)
        context = Context(
            eps, f"{method} ({used})", names, (objective.rows @ y.detach()).tolist(), _sizes(inputs), objective.tensors,
            penalty_row=2 if separate else None, separate=separate,
        )  # fmt: skip
        return assemble(
            evidences,
            context,
            findings=coarse,
            modules=findings,
            culprits=culprits,
            notes=notes,
            evaluations=objective.evaluations,
            seconds=time.perf_counter() - start,
        )


def _modules(cost: Cost, objective: Objective, seed: int, progress: bool | None) -> tuple[list[Finding], list[str]]:
    generator = torch.Generator().manual_seed(seed)
    with show_progress(len(list(cost.modules())) - 1, progress, "modules' own backwards") as display:
        found, culprits = check_modules(cost, objective, objective.random, generator, display.advance)
    names = {"model": "the model's own forward"}
    own = [Finding(names.get(f.name, label(f.name)), f.verdict, f.detail) for f in found]
    return own, [names.get(name, label(name)) for name in culprits]


def _check_arguments(model: object, eps: float, method: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {describe(model)}; use check_function for a plain function.")
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise TypeError(
            f"model must be a module written in Python, got {type(model).__name__} with TorchScript in it; "
            "check the module that it was scripted or traced from."
        )
    check_in_range(eps, "eps", 0.0, 1.0, low_open=True, high_open=True, remedy="the notes use 1e-7")
    if method not in ("exact", "projected"):
        raise ValueError(
            f"method must be 'exact' or 'projected', got {method!r}; "
            "'exact' takes a difference at every coordinate, 'projected' along random directions."
        )


def _first_evaluation(
    objective: Objective, original: nn.Module | None, data: Iterator[Tensor]
) -> tuple[Tensor, list[str]]:
    """Evaluate y with its graph, after the checks that J can be differentiated at all."""
    before = fingerprints(objective.tensors)
    y, drawn = objective.prepare()
    refuse_written(objective, before, "the forward")
    if not bool(torch.isfinite(y).all()):
        refuse_empty_batch(data, f"J = {y.detach().tolist()}")
        raise ValueError(
            f"J must be finite, got {y.detach().tolist()}; look for log(0), a division by zero or an overflow "
            "in the forward pass, and check at parameters where it is finite."
        )
    again = objective()
    if not torch.equal(y.detach(), again.detach()):
        raise ValueError(
            "J must be the same in two identical calls with the random states held fixed, got values "
            f"{float((y - again).detach().abs().max()):.1e} apart; pass every torch.Generator it draws from in "
            "generators=, and remove what it remembers from one call to the next, or changes in its inputs."
        )
    if original is not None and y.requires_grad:
        outside = torch.autograd.grad(
            again.sum(), [p for p in original.parameters() if p.requires_grad], allow_unused=True
        )
        if any(g is not None for g in outside):
            raise ValueError(
                "loss and penalty must reach the parameters through the model they are given, got a function that "
                "holds the model itself, while a float64 copy is checked; "
                "write penalty=lambda model: ..., or pass model.double()."
            )
    return y, ["J draws random numbers: they were held fixed in every evaluation"] if drawn else []


def _rows(separate: bool, method: str) -> Tensor:
    """The directions in which y is read: J, and where a check takes them one by one its data cost and penalty."""
    if not separate:
        return torch.ones(1, 1, dtype=torch.float64)
    rows = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    return rows[:1] if method == "projected" else rows


def _refuse_still(objective: Objective, y: Tensor, exact: Gradients, data: Iterator[Tensor]) -> list[Finding]:
    """Refuse, or say of, parameters and costs of which nothing can be seen."""
    base, cost = y.detach(), torch.zeros_like(y)
    refuse_absent(objective, base, exact)
    cost[0] = 1.0
    own = [row for row, read in zip(exact, objective.rows, strict=True) if torch.equal(read, cost)]
    return refuse_idle(objective, base, own[0] if own else None, data, cost, "J" if len(y) == 1 else "the data cost")


def _precision(objective: Objective) -> list[Finding]:
    """Note how coarse an evaluation is, and say so where it drops below float64 on the way."""
    eps, dtype = rounding(objective)
    objective.unit = max(objective.unit, eps / 2)
    found = precision_finding(eps, dtype, returned=False)
    return [] if found is None else [found]


def _evaluators(cost: Cost, objective: Objective, y: Tensor, data: tuple[Any, Any], memory: int) -> Iterator[Evaluator]:
    """The faster ways to evaluate a model's cost, fastest first."""
    chain = chain_of(cost, objective, *data)
    if chain is not None:
        penalty = None if cost.penalty is None else _penalty_alone(cost, objective, memory)
        yield ChainEvaluator(objective, y, *chain, memory, penalty)
    footprint = 8 * sum(t.numel() for t in tensors_in(data[0])) * 8
    yield BatchEvaluator(objective, y, model_batch(cost, objective, *data), memory, footprint)


def _penalty_alone(cost: Cost, objective: Objective, memory: int) -> Evaluator:
    """The differences of the penalty, which depends on the parameters only: the layers need not be run for it."""
    alone = Objective(
        objective.names, objective.tensors, lambda: cost.penalty_cost().double().reshape(1), objective.random
    )
    alone.rows = objective.rows.new_ones(1, 1)
    with torch.no_grad():
        base = alone()
    batch = BatchEvaluator(alone, base, penalty_batch(cost, objective), memory, 8)
    loop = LoopEvaluator(alone, base)
    return batch if agrees(batch, loop, torch.Generator().manual_seed(0)) else loop


def _exact(
    objective: Objective,
    y: Tensor,
    exact: Gradients,
    eps: float,
    seed: int,
    faster: Iterator[Evaluator],
    display: Progress,
) -> tuple[list[Evidence], str]:
    """Every coordinate of every tensor, by the fastest evaluator that agrees with the plain loop."""
    loop = LoopEvaluator(objective, y)
    generator = torch.Generator().manual_seed(seed)
    evaluator = shared(next((e for e in faster if agrees(e, loop, generator)), loop))
    lens = Lens(Watched(evaluator, display), loop, eps, generator)
    evidences = []
    for t, tensor in enumerate(objective.tensors):
        rows = [g[t] for g in exact]
        flat = torch.stack([_flat(g, tensor) for g in rows])
        evidence = gather(lens, t, flat)
        evidence.detached = all(g is None for g in rows)
        evidences.append(evidence)
    return evidences, evaluator.name


def _projected(
    objective: Objective,
    y: Tensor,
    exact: Sequence[Tensor | None],
    seed: int,
    memory: int,
    budget: int,
    display: Progress,
) -> GradientReport:
    """Along random directions."""
    objective.evaluations += 2  # a backward pass costs about two forward passes
    given = [torch.zeros_like(t) if g is None else g for g, t in zip(exact, objective.tensors, strict=True)]
    base = float(objective.rows[0] @ y.detach())
    return check_projected(Probe(objective, base, given, seed, memory, display.advance), budget, display.expect)


def _flat(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros(tensor.numel(), dtype=torch.float64, device=tensor.device)
    return gradient.detach().reshape(-1).double()


def _sizes(inputs: Any) -> dict[int, str]:
    first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
    if isinstance(first, Tensor) and first.dim():
        return {first.shape[0]: "the number of samples"}
    return {}


def assert_gradients(subject: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> GradientReport:
    """Check, and raise unless the verdict is "correct": for test suites.

    A module is given to `check_gradients`, any other callable to `check_function`, with the same arguments.

    Returns:
        The report of a correct gradient.

    Raises:
        GradientMismatch: an AssertionError whose text is the report.

    >>> layer = nn.Linear(2, 1)
    >>> assert_gradients(layer, torch.ones(3, 2), loss=torch.mean).verdict
    'correct'
    """
    if isinstance(subject, nn.Module):
        report = check_gradients(subject, *args, **kwargs)
    else:
        report = check_function(subject, *args, **kwargs)
    if not report.ok:
        raise GradientMismatch(report)
    return report
