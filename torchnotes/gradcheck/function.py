"""Checking one function or op: its differences at every coordinate, and the contracts of its backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torchnotes._checks import check_in_range, describe
from torchnotes.gradcheck._assemble import Context, assemble
from torchnotes.gradcheck._batched import BatchEvaluator, agrees, function_batch
from torchnotes.gradcheck._contracts import Contracts
from torchnotes.gradcheck._evaluate import Evaluator, LoopEvaluator
from torchnotes.gradcheck._higher import forward_mode as check_forward_mode
from torchnotes.gradcheck._higher import second_order as check_second_order
from torchnotes.gradcheck._judge import Lens, gather
from torchnotes.gradcheck._nothing import refuse_empty, refuse_no_output, refuse_still_outputs
from torchnotes.gradcheck._objective import Cost, Objective, double_cost
from torchnotes.gradcheck._precision import precision_finding
from torchnotes.gradcheck._state import RandomStates, module_generators, preserved
from torchnotes.gradcheck._subject import Subject
from torchnotes.gradcheck._written import fingerprints, refuse_written
from torchnotes.gradcheck.report import Finding, GradientReport

COTANGENTS = 2


def check_function(
    fn: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    eps: float = 1e-7,
    second_order: bool = True,
    forward_mode: bool = True,
    max_memory: int = 256 << 20,
    generators: Sequence[torch.Generator] = (),
    seed: int = 0,
) -> GradientReport:
    """Check one function's backward: against differences, and against what every backward owes its caller.

    For random cotangents v, the gradient of ⟨v, fn(x)⟩ is compared with two-sided differences at every coordinate of
    every floating-point input, as `check_gradients` does for a model. Beside that stand tests that need no ε:

    - linear in the cotangent, for signed, tiny and huge ones; a backward such as ``grad.abs()`` is not;
    - the cotangent is left alone, and may lie in memory in any way (strided, transposed, expanded);
    - a second backward, and two uses of the function interleaved, give the same;
    - a gradient does not depend on which other inputs require grad;
    - the forward-mode rule, where there is one, is the transpose of the backward: ⟨v, J d⟩ = ⟨Jᵀ v, d⟩;
    - the backward of the backward, where there is one, agrees with the gradient's own derivative.

    Args:
        fn: a function of the inputs, or a module (whose parameters are then checked with its inputs), returning a
            tensor or any nest of tensors.
        *inputs: the arguments; tensors may be nested in tuples, lists and dicts. If some floating-point tensors
            require grad, those are checked, otherwise all of them. They are converted to float64 and not changed.
            Integer and boolean tensors are constants.
        kwargs: keyword arguments for ``fn``.
        eps: the ε of the notes' ratio.
        second_order: whether to check the second-order rule.
        forward_mode: whether to check the forward-mode rule.
        max_memory: bytes that evaluations taken together may hold at once.
        generators: random generators that fn draws from, beyond the default ones.
        seed: chooses cotangents and sampled entries.

    Returns:
        The report; ``print`` it.

    Raises:
        TypeError: an input is complex, or none is floating point.
        ValueError: fn returns no floating-point tensor, is not finite, or differs between two identical calls; or there
            is nothing to check: no input or no output has an entry, or an empty batch leaves nothing that moves.

    Source: the notes, "gradient checking"; SPEC D4 to D7, G11, G12.

    >>> report = check_function(torch.sigmoid, torch.linspace(-3, 3, 7))
    >>> report.verdict
    'correct'
    >>> class Wrong(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return 2 * x
    ...     @staticmethod
    ...     def backward(ctx, grad_y):
    ...         return 2 * grad_y.abs()
    >>> report = check_function(Wrong.apply, torch.ones(3))
    >>> report.verdict
    'wrong'
    """
    start = time.perf_counter()
    _check_arguments(fn, inputs, eps)
    random = RandomStates([*generators, *(module_generators(fn) if isinstance(fn, nn.Module) else [])])
    with ExitStack() as stack:
        holder = stack.enter_context(double_cost(Cost(fn, None, None))) if isinstance(fn, nn.Module) else nn.Module()
        stack.enter_context(preserved(holder, random))
        subject = Subject(holder.model if isinstance(fn, nn.Module) else fn, inputs, kwargs or {}, random)  # type: ignore[arg-type]
        _refuse_constants(subject, inputs)
        return _check_subject(
            subject,
            random,
            eps,
            seed,
            start,
            max_memory=max_memory,
            second_order=second_order,
            forward_mode=forward_mode,
        )


def _check_arguments(fn: object, inputs: Sequence[Any], eps: float) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {describe(fn)}; pass the function itself, not its result.")
    check_in_range(eps, "eps", 0.0, 1.0, low_open=True, high_open=True, remedy="the notes use 1e-7")


def _refuse_constants(subject: Subject, inputs: Sequence[Any]) -> None:
    if not subject.values:
        got = ", ".join(describe(i) for i in inputs) or "no inputs"
        raise TypeError(
            f"fn must be given a floating-point tensor to differentiate, got {got}; convert integers with .double()."
        )


def _check_subject(
    subject: Subject,
    random: RandomStates,
    eps: float,
    seed: int,
    start: float,
    *,
    max_memory: int,
    second_order: bool,
    forward_mode: bool,
) -> GradientReport:
    generator = torch.Generator().manual_seed(seed)
    objective = Objective(subject.names, subject.values, lambda: subject.flat(subject.values), random)
    notes = refuse_empty(subject.names, subject.values, "inputs")
    left_out = subject.leave_out_constants()
    before = fingerprints(objective.tensors)
    y, drawn = objective.prepare()
    refuse_written(objective, before, "fn")
    refuse_no_output(y)
    notes += ["fn draws random numbers: they were held fixed in every evaluation"] if drawn else []
    notes += [f"{left_out} outputs that carry no gradient were left out"] if left_out else []
    _refuse_unusable(objective, y)
    count = 1 if y.numel() == 1 else COTANGENTS
    objective.rows = torch.randn(count, y.numel(), generator=generator, dtype=torch.float64).to(y.device)
    if y.numel() == 1:
        objective.rows = torch.ones_like(objective.rows)
    objective.row_names = [f"cotangent {k + 1}" for k in range(count)]
    try:
        exact = objective.gradients()
    except RuntimeError as error:
        return _raised(error, objective, y, eps, start)
    refuse_still_outputs(objective, y.detach(), exact, subject.tensors())
    contracts = Contracts(subject, generator)
    objective.unit = max(objective.unit, contracts.eps / 2)
    findings = _findings(contracts, generator, second_order=second_order, forward_mode=forward_mode)
    loop = LoopEvaluator(objective, y)
    batch = BatchEvaluator(objective, y, function_batch(subject.flat, subject.values), max_memory, 8 * 8 * y.numel())
    evaluator: Evaluator = batch if agrees(batch, loop, generator) else loop
    lens = Lens(evaluator, loop, eps, generator)
    evidences = []
    for t, value in enumerate(subject.values):
        rows = [row[t] for row in exact]
        flat = torch.stack([(torch.zeros_like(value) if g is None else g).detach().reshape(-1) for g in rows])
        evidence = gather(lens, t, flat)
        evidence.detached = all(g is None for g in rows)
        evidences.append(evidence)
    values = (objective.rows @ y.detach()).tolist()
    context = Context(eps, f"exact ({evaluator.name})", objective.row_names, values, _sizes(subject), subject.values)
    return assemble(
        evidences,
        context,
        findings=findings,
        notes=notes,
        evaluations=objective.evaluations,
        seconds=time.perf_counter() - start,
    )


def _findings(
    contracts: Contracts, generator: torch.Generator, *, second_order: bool, forward_mode: bool
) -> list[Finding]:
    found = list(contracts.run())
    returned = any(o.dtype != torch.float64 for o in contracts.outputs)
    found += [f for f in [precision_finding(contracts.eps, contracts.dtype, returned=returned)] if f is not None]
    if forward_mode and contracts.live:
        found += [f for f in [check_forward_mode(contracts, generator)] if f is not None]
    if second_order and contracts.live:
        found += [f for f in [check_second_order(contracts, generator)] if f is not None]
    return found


def _refuse_unusable(objective: Objective, y: Tensor) -> None:
    if not bool(torch.isfinite(y).all()):
        raise ValueError(
            f"fn must return finite numbers, got {int((~torch.isfinite(y)).sum())} of {y.numel()} that are not; "
            "check it at inputs inside its domain."
        )
    again = objective()
    if not torch.equal(y.detach(), again.detach()):
        raise ValueError(
            "fn must return the same in two identical calls with the random states held fixed, got values "
            f"{float((y - again).detach().abs().max()):.1e} apart; pass every torch.Generator it draws from in "
            "generators=, and remove what it remembers from one call to the next."
        )


def _raised(error: RuntimeError, objective: Objective, y: Tensor, eps: float, start: float) -> GradientReport:
    """A backward that raises is wrong, and the report says what it raised."""
    detail = f"raised {type(error).__name__}: {str(error).splitlines()[0]}"
    context = Context(eps, "exact", [], [], {}, [])
    return assemble(
        [],
        context,
        findings=[Finding("backward", "wrong", detail)],
        evaluations=objective.evaluations,
        seconds=time.perf_counter() - start,
    )


def _sizes(subject: Subject) -> dict[int, str]:
    first = subject.values[0]
    return {first.shape[0]: "the length of the first axis"} if first.dim() else {}
