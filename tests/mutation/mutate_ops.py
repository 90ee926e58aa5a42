"""Plant bugs in the arithmetic of the ops, one at a time, and see whether the tests notice.

    python tests/mutation/mutate_ops.py [--jobs 2] [--only batch_norm softmax] [--list]

A mutant is one change of one expression: a sign, an operator, a constant, a comparison, a reduction, a function.
Argument checks and messages are left alone: their tests match wording. Each mutant runs the tests of its op in a
process of its own, forked after torch is imported, and is killed by the first test that fails. What survives must be
equivalent, and `EQUIVALENT` says why; a run over all modules writes `result.md` beside this file.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).with_name("result.md")
LIMIT = 400  # seconds of processor time for one mutant, waiting not counted

# module → (its own test files, words that select its cases from the tests of every op)
TESTS: dict[str, tuple[list[str], str]] = {
    "sigmoid": (["test_sigmoid.py"], "sigmoid"),
    "tanh": (["test_tanh.py"], "tanh"),
    "relu": (["test_relu.py"], "relu"),
    "leaky_relu": (["test_leaky_relu.py"], "leaky"),
    "linear": (["test_linear.py"], "linear"),
    "softmax": (["test_softmax.py"], "softmax"),
    "log_softmax": (["test_softmax.py"], "softmax"),
    "binary_cross_entropy": (["test_binary_cross_entropy.py"], "binary"),
    "binary_cross_entropy_with_logits": (["test_binary_cross_entropy.py"], "binary"),
    "cross_entropy": (["test_cross_entropy.py"], "cross_entropy and not binary"),
    "batch_norm": (["test_batch_norm.py"], "batch_norm"),
    "l1_penalty": (["test_penalties.py"], "penalty"),
    "l2_penalty": (["test_penalties.py"], "penalty"),
    "_reduction": (["test_cross_entropy.py", "test_binary_cross_entropy.py", "test_penalties.py"], "entropy"),
}
SKIPPED = ("check_", "_check", "_explain", "refuse", "class_axis", "prepare", "expand_weight", "_require")

# "module: change" → why no test can tell it from the original. Filled from the survivors, each read and argued.
EQUIVALENT: dict[str, str] = {}

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
METHODS = {
    "sum": "mean", "mean": "sum", "exp": "expm1", "log": "log2", "log1p": "log", "rsqrt": "reciprocal", "abs": "neg",
    "sign": "neg", "clamp_min": "clamp_max", "clamp_min_": "clamp_max_", "mul_": "add_", "sub_": "add_", "add_": "sub_",
    "addcmul": "addcdiv", "addcmul_": "addcdiv_", "log_softmax": "softmax", "softmax": "log_softmax",
    "sigmoid": "tanh", "tanh": "sigmoid", "scatter_add_": "scatter_", "reciprocal": "sqrt", "lerp_": "add_",
}  # fmt: skip
DROPPED = ("neg", "unsqueeze", "squeeze", "masked_fill", "clamp_min", "abs")


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """Every changed copy of one expression."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not isinstance(node.left, (ast.List, ast.JoinedStr)):
            changed = copy.deepcopy(node)
            changed.op = OPERATORS[type(node.op)]()
            yield changed
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield copy.deepcopy(node.operand)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed = copy.deepcopy(node)
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield changed
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    if isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
    if isinstance(node, ast.IfExp):
        changed = copy.deepcopy(node)
        changed.body, changed.orelse = changed.orelse, changed.body
        yield changed
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in METHODS:
            changed = copy.deepcopy(node)
            changed.func.attr = METHODS[node.func.attr]
            yield changed
        if node.func.attr in DROPPED and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            yield copy.deepcopy(node.func.value)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith(SKIPPED):
            yield node


def places(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where an expression of the function's body hangs: (parent, field, index)."""
    stack: list[ast.AST] = list(function.body)
    while stack:
        parent = stack.pop()
        if isinstance(parent, (ast.Raise, ast.Assert, ast.FunctionDef, ast.AnnAssign, ast.Import, ast.ImportFrom)):
            continue
        for field, value in ast.iter_fields(parent):
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST):
                    continue
                if isinstance(parent, ast.Expr) and isinstance(child, ast.Constant):
                    continue  # a docstring
                if isinstance(child, ast.expr) and field not in ("annotation", "ctx", "slice"):
                    yield parent, field, index
                stack.append(child)


def mutants(module: str) -> list[tuple[str, str]]:
    """(what was changed, the source with it) for every mutant of the module."""
    source = (ROOT / "torchnotes" / "ops" / f"{module}.py").read_text()
    tree = ast.parse(source)
    found, seen = [], Counter[str]()
    for function in functions(tree):
        for parent, field, index in places(function):
            original = getattr(parent, field) if index is None else getattr(parent, field)[index]
            for changed in mutations(original):
                _put(parent, field, index, changed)
                what = f"{module}: {function.name}: {ast.unparse(original)} → {ast.unparse(changed)}"
                seen[what] += 1
                if seen[what] > 1:
                    what += f" (occurrence {seen[what]})"
                found.append((what, ast.unparse(ast.fix_missing_locations(tree))))
                _put(parent, field, index, original)
    return found


def _put(parent: ast.AST, field: str, index: int | None, value: Any) -> None:
    if index is None:
        setattr(parent, field, value)
    else:
        getattr(parent, field)[index] = value


class Planted(importlib.abc.MetaPathFinder):
    """Serves one module of torchnotes from a changed source."""

    def __init__(self, module: str, source: str) -> None:
        self.name, self.source = f"torchnotes.ops.{module}", source

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        file = str(ROOT / "torchnotes" / "ops" / f"{name.rsplit('.', 1)[1]}.py")
        loader = importlib.machinery.SourceFileLoader(name, file)
        loader.get_code = lambda _: compile(self.source, file, "exec")  # type: ignore[method-assign]
        return importlib.util.spec_from_loader(name, loader)


def survives(module: str, source: str | None) -> bool:
    """In a child process: whether every test passes with the planted source."""
    import pytest

    if source is not None:
        sys.meta_path.insert(0, Planted(module, source))
    own, words = TESTS[module]
    quick = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-o", "timeout=0"]
    tests = "tests/ops"
    stages = [
        [f"{tests}/{name}" for name in own if (ROOT / tests / name).exists()],
        [f"{tests}/test_derivations.py", "-k", words.replace("leaky", "leaky_relu")],
        [f"{tests}/test_every_op.py", "-k", f"({words}) and not compiled"],
        [f"{tests}/test_every_op.py", "-k", f"({words}) and compiled"],
        [f"{tests}/test_samples.py", "-k", f"value and ({words})"],
    ]
    good = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return all(pytest.main([*quick, *stage]) in good for stage in stages if stage)


def start(module: str, source: str | None) -> int:
    child = os.fork()
    if child:
        return child
    with tempfile.TemporaryFile() as unread:
        os.dup2(unread.fileno(), 1)
        os.dup2(unread.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))  # a hanging mutant dies of it, and so counts as killed
    code = 1
    try:
        code = 0 if survives(module, source) else 1
    finally:
        os._exit(code)


def run(work: list[tuple[str, str, str | None]], jobs: int) -> dict[str, bool]:
    """Which of the (label, module, source) survive."""
    outcome: dict[str, bool] = {}
    running: dict[int, str] = {}
    waiting = list(reversed(work))
    while waiting or running:
        while waiting and len(running) < jobs:
            label, module, source = waiting.pop()
            running[start(module, source)] = label
        child, status = os.wait()
        label = running.pop(child)
        outcome[label] = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        print(f"{len(outcome):4}/{len(work)}  {'SURVIVES' if outcome[label] else 'killed  '}  {label}", flush=True)
    return outcome


def report(outcome: dict[str, bool], seconds: float) -> str:
    import torch

    survivors = [label for label, survived in outcome.items() if survived]
    open_ones = [label for label in survivors if label not in EQUIVALENT]
    by_module: dict[str, list[bool]] = {}
    for label, survived in outcome.items():
        by_module.setdefault(label.split(":")[0], []).append(survived)
    rows = [f"| {m} | {len(v)} | {len(v) - sum(v)} | {sum(v)} |" for m, v in sorted(by_module.items())]
    lines = [
        "# Mutants of the ops",
        "",
        f"Written by `python tests/mutation/mutate_ops.py`, torch {torch.__version__.split('+')[0]}. "
        f"{len(outcome)} mutants: {len(outcome) - len(survivors)} killed, "
        f"{len(survivors) - len(open_ones)} equivalent, {len(open_ones)} open. {seconds / 60:.0f} minutes.",
        "",
        "| module | mutants | killed | survived |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Survivors",
        "",
        *(f"- `{label}`: {EQUIVALENT.get(label, '**open**')}" for label in survivors),
        *([] if survivors else ["None."]),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--match", default="", help="only mutants whose description contains this")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    work: list[tuple[str, str, str | None]] = [
        (what, module, source)
        for module in arguments.only
        for what, source in mutants(module)
        if arguments.match in what
    ]
    if arguments.list:
        print("\n".join(what for what, *_ in work), f"\n{len(work)} mutants")
        return 0
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    began = time.time()
    unharmed = run([(f"{module}: unchanged", module, None) for module in arguments.only], arguments.jobs)
    if not all(unharmed.values()):
        print("the tests fail without any mutant:", [name for name, passed in unharmed.items() if not passed])
        return 2
    outcome = run(work, arguments.jobs)
    text = report(outcome, time.time() - began)
    print(text)
    if arguments.only == list(TESTS) and not arguments.match:
        RESULT.write_text(text)
    return int("**open**" in text)


if __name__ == "__main__":
    raise SystemExit(main())
