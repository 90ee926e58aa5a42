"""Every differentiable op of PyTorch's own test database, on its own float64 samples, through `check_function`.

PyTorch's ops are taken to be right: a verdict of "wrong" here is a false alarm of ours (or a find). Run

    python -m experiments.benchmarks.gradcheck_op_db --output op_db.json

and, to share the work over processes, ``--shard 0/2`` and ``--shard 1/2``. Needs expecttest (the ``dev`` extra).
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchnotes.gradcheck import check_function

LARGEST = 1500


@dataclass(frozen=True)
class Config:
    """What to sweep: a shard ``i/n`` of the ops, at most so many samples of each, the first ``ops`` names given."""

    shard: str = "0/1"
    samples: int = 1000
    seconds_per_op: float = 60.0
    ops: tuple[str, ...] = ()
    output: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """One sample's verdict."""

    op: str
    sample: int
    verdict: str
    reason: str
    seconds: float


def differentiable_ops(names: tuple[str, ...] = ()) -> list[Any]:
    """The database's ops that have a float64 gradient."""
    from torch.testing._internal.common_methods_invocations import op_db

    ops = [o for o in op_db if o.supports_autograd and torch.float64 in o.supported_backward_dtypes("cpu")]
    return [o for o in ops if not names or o.name in names]


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
    name = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
    if sum(t.numel() for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)) > LARGEST:
        return Outcome(name, number, "too large", f"more than {LARGEST} entries", 0.0)
    try:
        report = check_function(
            fn, *args, kwargs=kwargs, second_order=op.supports_gradgrad, forward_mode=op.supports_forward_ad
        )
        verdict, reason = str(report.verdict), report.reason
        if verdict == "wrong" and not torch_agrees(op, fn, args, kwargs):
            verdict = "wrong, and PyTorch's own check fails too"
    except (ValueError, TypeError) as error:  # the checker's own, or the op's
        verdict, reason = "refused", str(error).splitlines()[0]
    except Exception as error:  # a crash of the checker is a result worth seeing
        verdict, reason = "crashed", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return Outcome(name, number, verdict, reason[:300], time.perf_counter() - start)


def torch_agrees(op: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether PyTorch's own first- and second-order checks pass on the sample."""
    leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    places = [k for k, v in enumerate(leaves) if isinstance(v, torch.Tensor) and v.requires_grad]

    def of_tensors(*values: torch.Tensor) -> Any:
        full = list(leaves)
        for k, value in zip(places, values, strict=True):
            full[k] = value
        again, keywords = torch.utils._pytree.tree_unflatten(full, spec)
        return fn(*again, **keywords)

    inputs = [leaves[k] for k in places]
    try:
        first = torch.autograd.gradcheck(of_tensors, inputs, check_forward_ad=op.supports_forward_ad)
        return first and (not op.supports_gradgrad or torch.autograd.gradgradcheck(of_tensors, inputs))
    except Exception:  # it raises in many ways when it fails
        return False


def main(config: Config) -> list[Outcome]:
    """Sweep the shard, print what is not "correct", and write every outcome that is not, with the counts."""
    warnings.simplefilter("ignore")
    index, count = (int(part) for part in config.shard.split("/"))
    outcomes = []
    for op in differentiable_ops(config.ops)[index::count]:
        torch.manual_seed(0)
        start = time.perf_counter()
        for case in cases(op, config.samples):
            outcome = check_case(op, *case)
            outcomes.append(outcome)
            if outcome.verdict not in ("correct", "too large"):
                print(f"{outcome.op}[{outcome.sample}] {outcome.verdict}: {outcome.reason}", flush=True)
            if time.perf_counter() - start > config.seconds_per_op:
                print(f"{op.name}: stopped after {outcome.sample + 1} samples", flush=True)
                break
    counts = Counter(o.verdict for o in outcomes)
    print(dict(counts), f"{len({o.op for o in outcomes})} ops", flush=True)
    if config.output is not None:
        rest = [vars(o) for o in outcomes if o.verdict not in ("correct", "too large")]
        summary = {
            "torch": torch.__version__,
            "counts": dict(counts),
            "ops": len({o.op for o in outcomes}),
            "rest": rest,
        }
        config.output.write_text(json.dumps(summary, indent=1) + "\n")
    return outcomes


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
