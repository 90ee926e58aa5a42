"""Every differentiable op of PyTorch's own test database, on all its own float64 samples, through `check_function`.

PyTorch's ops are taken to be right: a verdict of "wrong" here is a false alarm of ours (or a find). Run

    python -m experiments.benchmarks.gradcheck_op_db --output docs/gradcheck_op_db.json

Half an hour's work, kept sample by sample beside the output, so that a run that was stopped goes on where it was;
``--seconds`` stops it before the next, and ``--shard 0/2`` and ``--shard 1/2`` share the work over processes. Needs
expecttest (the ``dev`` extra). Samples of more than `LARGEST` entries are checked along random directions.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchnotes.gradcheck import GradientReport, check_function, check_gradients

LARGEST = 12_000
NOTHING = "nothing to check"
KNOWN_TO_PYTORCH = "wrong, as by PyTorch's own check"
PYTORCHS_TESTS = {
    "gradient": ("TestBwdGradients", "test_fn_grad"),
    "second order": ("TestBwdGradients", "test_fn_gradgrad"),
    "forward mode": ("TestFwdGradients", "test_forward_mode_AD"),
}


@dataclass(frozen=True)
class Config:
    """What to sweep: a shard ``i/n`` of the ops, at most so many samples of each, those named or all, for how long."""

    shard: str = "0/1"
    samples: int = 100_000
    ops: tuple[str, ...] = ()
    output: Path | None = None
    seconds: float = float("inf")


@dataclass(frozen=True)
class Outcome:
    """One sample's verdict."""

    op: str
    sample: int
    verdict: str
    reason: str
    seconds: float
    method: str = "exact"


def differentiable_ops(names: tuple[str, ...] = ()) -> list[Any]:
    """The database's ops that have a float64 gradient."""
    from torch.testing._internal.common_methods_invocations import op_db

    ops = [o for o in op_db if o.supports_autograd and torch.float64 in o.supported_backward_dtypes("cpu")]
    return [o for o in ops if not names or o.name in names]


def full_name(op: Any) -> str:
    """The op's name with its variant's."""
    return str(op.name) + (f".{op.variant_test_name}" if op.variant_test_name else "")


def left_out_by_pytorch(op: Any) -> list[str]:
    """Which of its rules PyTorch's own gradient tests skip for this op, or expect to fail."""
    from torch.testing._internal.opinfo.core import DecorateInfo

    found = []
    for rule, (case, test) in PYTORCHS_TESTS.items():
        for d in op.decorators:
            if isinstance(d, DecorateInfo) and d.is_active(case, test, "cpu", torch.float64, {}):
                kinds = {getattr(x, "__qualname__", "") for x in d.decorators}
                if kinds & {"expectedFailure", "skip.<locals>.decorator"} and rule not in found:
                    found.append(rule)
    return found


def cases(op: Any, limit: int) -> Iterator[tuple[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """The samples of an op as (number, function, arguments, keywords)."""
    for number, sample in enumerate(op.sample_inputs("cpu", torch.float64, requires_grad=True)):
        if number >= limit:
            return

        def fn(*args: Any, _sample: Any = sample, **kwargs: Any) -> Any:
            out = op.gradcheck_wrapper(op.get_op(), *args, **kwargs)
            return _sample.output_process_fn_grad(out) if _sample.output_process_fn_grad else out

        yield number, fn, (sample.input, *sample.args), dict(sample.kwargs)


def check_case(op: Any, number: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """One sample through the checker; refusals are outcomes too."""
    start = time.perf_counter()
    name = full_name(op)
    method = "exact" if entries(args, kwargs) <= LARGEST else "projected"
    try:
        if method == "exact":
            report = check_function(
                fn, *args, kwargs=kwargs, second_order=op.supports_gradgrad, forward_mode=op.supports_forward_ad
            )
        else:
            report = check_along_directions(fn, args, kwargs)
        verdict, reason = str(report.verdict), report.reason
        if verdict == "wrong" and not torch_agrees(op, fn, args, kwargs, fast=method == "projected"):
            verdict = KNOWN_TO_PYTORCH
    except (ValueError, TypeError) as error:  # the checker's own, or the op's
        reason = str(error).splitlines()[0]
        verdict = NOTHING if "whatever the backward does" in reason else "refused"
    except Exception as error:  # a crash of the checker is a result worth seeing
        verdict, reason = "crashed", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return Outcome(name, number, verdict, reason[:300], round(time.perf_counter() - start, 3), method)


def entries(*nest: Any) -> int:
    """The entries of all tensors that are differentiated."""
    return sum(t.numel() for t in pytree.tree_leaves(nest) if isinstance(t, Tensor) and t.requires_grad)


class OfParameters(nn.Module):
    """A function of parameters, which are the tensors among its arguments that require grad."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.fn = fn
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.places = [k for k, v in enumerate(self.leaves) if isinstance(v, Tensor) and v.requires_grad]
        self.values = nn.ParameterList(self.leaves[k].detach().clone() for k in self.places)

    def forward(self) -> list[Tensor]:
        """The outputs, real, those that carry no gradient left out."""
        full = list(self.leaves)
        for k, value in zip(self.places, self.values, strict=True):
            full[k] = value
        args, kwargs = pytree.tree_unflatten(full, self.spec)
        outputs = [o for o in pytree.tree_leaves(self.fn(*args, **kwargs)) if isinstance(o, Tensor)]
        floating = [torch.view_as_real(o) if o.is_complex() else o for o in outputs if not o.dtype == torch.bool]
        return [o for o in floating if o.is_floating_point()]


class Pulled(nn.Module):
    """⟨v, f⟩ for a random v: a cost whose gradient is what the backward of f makes of v."""

    def __init__(self, inner: OfParameters) -> None:
        super().__init__()
        self.inner = inner

    def forward(self) -> Tensor:
        """The cost."""
        generator = torch.Generator().manual_seed(0)
        return torch.stack(
            [(o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in self.inner()]
        ).sum()


def check_along_directions(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> GradientReport:
    """A large sample: its gradient along random directions, and the contracts of its backward."""
    return check_gradients(Pulled(OfParameters(fn, args, kwargs)), (), method="projected", modules=True)


def torch_agrees(op: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, fast: bool) -> bool:
    """Whether PyTorch's own first- and second-order checks pass on the sample; in fast mode where it is large."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [k for k, v in enumerate(leaves) if isinstance(v, torch.Tensor) and v.requires_grad]

    def of_tensors(*values: torch.Tensor) -> Any:
        full = list(leaves)
        for k, value in zip(places, values, strict=True):
            full[k] = value
        again, keywords = pytree.tree_unflatten(full, spec)
        return fn(*again, **keywords)

    inputs = [leaves[k] for k in places]
    try:
        first = torch.autograd.gradcheck(of_tensors, inputs, check_forward_ad=op.supports_forward_ad, fast_mode=fast)
        return first and (not op.supports_gradgrad or torch.autograd.gradgradcheck(of_tensors, inputs, fast_mode=fast))
    except Exception:  # it raises in many ways when it fails
        return False


def sweep(
    ops: Sequence[Any], samples: int, done: dict[str, list[Outcome]], log: Path | None, seconds: float = float("inf")
) -> bool:
    """Check every sample that is not in ``done`` yet, and note its outcome there and in the log.

    Returns:
        Whether all were done before the time was over.
    """
    end = time.perf_counter() + seconds
    for op in ops:
        kept = done.setdefault(full_name(op), [])
        torch.manual_seed(0)
        for case in list(cases(op, samples))[len(kept) :]:
            if time.perf_counter() > end:
                return False
            outcome = check_case(op, *case)
            kept.append(outcome)
            if outcome.verdict not in ("correct", NOTHING):
                print(f"{outcome.op}[{outcome.sample}] {outcome.verdict}: {outcome.reason}", flush=True)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(vars(outcome)) + "\n")
    return True


def summary(ops: Sequence[Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The counts; every outcome that is not "correct", reason by reason; and what PyTorch's own tests leave out."""
    grouped: dict[tuple[str, str, str], list[int]] = {}
    for o in outcomes:
        if o.verdict != "correct":
            reason = o.reason.split(", got")[0] if o.verdict == NOTHING else o.reason
            grouped.setdefault((o.op, o.verdict, reason), []).append(o.sample)
    named = {op for op, *_ in grouped}
    return {
        "torch": torch.__version__,
        "ops": len({o.op for o in outcomes}),
        "samples": len(outcomes),
        "counts": dict(Counter(o.verdict for o in outcomes).most_common()),
        "along random directions": sum(o.method == "projected" for o in outcomes),
        "seconds": round(sum(o.seconds for o in outcomes)),
        "rest": [
            {"op": op, "verdict": verdict, "samples": numbers, "reason": reason}
            for (op, verdict, reason), numbers in grouped.items()
        ],
        "left out by PyTorch's own tests": {
            full_name(o): left for o in ops if full_name(o) in named and (left := left_out_by_pytorch(o))
        },
    }


def main(config: Config) -> list[Outcome]:
    """Sweep the shard, print what is not "correct", and write the summary."""
    warnings.simplefilter("ignore")
    index, count = (int(part) for part in config.shard.split("/"))
    ops = differentiable_ops(config.ops)[index::count]
    log = None if config.output is None else config.output.with_suffix(".partial.jsonl")
    done: dict[str, list[Outcome]] = {}
    if log is not None and log.exists():
        for line in log.read_text().splitlines():
            outcome = Outcome(**json.loads(line))
            done.setdefault(outcome.op, []).append(outcome)
    if not sweep(ops, config.samples, done, log, config.seconds):
        print(f"time is over: {sum(map(len, done.values()))} samples done", flush=True)
        return []
    outcomes = [o for op in ops for o in done[full_name(op)]]
    found = summary(ops, outcomes)
    print(found["counts"], f"{found['ops']} ops", flush=True)
    if config.output is not None:
        config.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return outcomes


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
