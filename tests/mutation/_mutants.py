"""What a mutant is, which files have them, and how one is put into a module that is already imported."""

from __future__ import annotations

import ast
import copy
import functools
import gc
import hashlib
import io
import sys
import tokenize
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "torchnotes" / "ops"

# file of torchnotes/ops → a regular expression for the ids of the tests that run its code
FILES: dict[str, str] = {
    "sigmoid": "sigmoid|binary|bce",
    "tanh": "tanh",
    "relu": "relu",
    "leaky_relu": "leaky",
    "linear": "linear|dense|mlp",
    "softmax": "softmax",
    "log_softmax": "log_softmax|logsoftmax|test_softmax",
    "binary_cross_entropy": "binary|bce",
    "binary_cross_entropy_with_logits": "binary|bce",
    "cross_entropy": "(?<!binary_)cross_?entropy",
    "batch_norm": "batch_?norm",
    "_channels": "batch_?norm",
    "l1_penalty": "penalt",
    "l2_penalty": "penalt",
    "_reduction": "entropy|bce|penalt",
    "dropout": "drop|dense",
    "dense": "dense",
    "_activation": "dense|mlp",
    "_network": "mlp",
    "kernels/random_mask": "drop|random|dense|asked",
}
LEFT_OUT = {
    "__init__": "it re-exports and computes nothing",
    "_function": "it runs the ops and computes nothing; its tests go through each of the ways it can run one",
    "_penalty": "it checks arguments and computes nothing",
    "_refuse": "it holds the wording of one error",
    "kernels/__init__": "it re-exports and computes nothing",
    "kernels/_dispatch": "it chooses which code runs and computes nothing",
    "kernels/memory": "it asks for memory and computes nothing; its tests look at what it asks for",
    "kernels/triton_cross_entropy": "Triton compiles a kernel from its source text, which a changed function leaves as "
    "it was; its cases compare every kernel with the op's plain arithmetic",
}
LEFT_OUT |= dict.fromkeys(
    ("kernels/triton_dense", "kernels/triton_dropout", "kernels/triton_random"),
    LEFT_OUT["kernels/triton_cross_entropy"],
)

# Functions that check arguments or word errors, whose tests match the wording; and what runs only at import.
SKIPPED = (
    "check_", "_check", "_explain", "refuse", "class_axis", "prepare", "_require", "_short",
    "__init_subclass__", "_fast_path_works", "_missing",
)  # fmt: skip

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.Mod: ast.Mult,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
METHODS = {
    "sum": "mean", "mean": "sum", "exp": "expm1", "log": "log2", "log1p": "log", "rsqrt": "reciprocal", "abs": "neg",
    "sign": "neg", "clamp_min": "clamp_max", "clamp_min_": "clamp_max_", "mul_": "add_", "sub_": "add_", "add_": "sub_",
    "mul": "add", "addcmul": "addcdiv", "addcmul_": "addcdiv_", "log_softmax": "softmax", "softmax": "log_softmax",
    "sigmoid": "tanh", "tanh": "sigmoid", "sigmoid_": "tanh_", "tanh_": "sigmoid_", "scatter_add_": "scatter_",
    "reciprocal": "sqrt", "lerp_": "add_", "rsub": "sub", "zeros_like": "ones_like", "ones_like": "zeros_like",
    "new_zeros": "new_ones", "new_ones": "new_zeros", "leaky_relu": "rrelu", "lt": "le",
}  # fmt: skip
DROPPED = ("neg", "unsqueeze", "squeeze", "masked_fill", "clamp_min", "abs")


@dataclass(frozen=True)
class Mutant:
    """One changed expression of one file; ``tree`` is the whole file with it."""

    label: str
    tree: ast.Module


def source_of(name: str) -> str:
    return (OPS / f"{name}.py").read_text()


def fingerprint(source: str) -> str:
    """A hash of the code alone: comments, docstrings and the width of blanks may change, nothing else."""
    tree = ast.parse(source)
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = [body[0] for body in bodies if body and _is_text(body[0])]
    skipped = {line for doc in docs for line in range(doc.lineno, (doc.end_lineno or doc.lineno) + 1)}
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    code = [line.rstrip() for number, line in enumerate(lines, 1) if number not in skipped and line.strip()]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def mutants(name: str) -> list[Mutant]:
    """The mutants of a file, in the order of its lines."""
    tree = ast.parse(source_of(name))
    found: list[Mutant] = []
    for label, parent, field, index, changed in _changes(tree):
        original = getattr(parent, field) if index is None else getattr(parent, field)[index]
        _put(parent, field, index, ast.copy_location(changed, original))
        found.append(Mutant(label, ast.fix_missing_locations(copy.deepcopy(tree))))
        _put(parent, field, index, original)
    return found


@functools.cache
def labels(name: str) -> list[str]:
    """What is changed in each of them."""
    return [label for label, *_ in _changes(ast.parse(source_of(name)))]


def _changes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str, int | None, ast.expr]]:
    """Every change, with the place where it is to be put."""
    seen = Counter[str]()
    for scope, root in _scopes(tree):
        for parent, field, index in list(_places(root)):
            original = getattr(parent, field) if index is None else getattr(parent, field)[index]
            for changed in [*_mutations(original), *_of_statement(parent, field, original)]:
                what = f"{scope}: {ast.unparse(original)} → {ast.unparse(changed)}"
                seen[what] += 1
                yield what if seen[what] == 1 else f"{what} (occurrence {seen[what]})", parent, field, index, changed


def _mutations(node: ast.AST) -> Iterator[ast.expr]:
    """Every changed copy of one expression."""
    changed: Any = copy.deepcopy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not isinstance(node.left, (ast.List, ast.JoinedStr)):
            changed.op = OPERATORS[type(node.op)]()
            yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield changed.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield changed
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and node.value in ("low", "float32"):
        yield ast.Constant("float32" if node.value == "low" else "low")
    elif isinstance(node, ast.BoolOp):
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
    elif isinstance(node, ast.IfExp):
        changed.body, changed.orelse = changed.orelse, changed.body
        yield changed
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in METHODS:
            changed.func.attr = METHODS[node.func.attr]
            yield changed
        if node.func.attr in DROPPED and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            yield copy.deepcopy(node.func.value)


def _of_statement(parent: ast.AST, field: str, node: ast.AST) -> Iterator[ast.expr]:
    """The negated test of an ``if`` that `_mutations` leaves alone."""
    if isinstance(parent, ast.If) and field == "test" and isinstance(node, (ast.Name, ast.Attribute, ast.Call)):
        yield ast.UnaryOp(ast.Not(), copy.deepcopy(node))


def _scopes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Functions by name, and the values assigned in the module and in its classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith(SKIPPED):
            yield node.name, node
        if isinstance(node, (ast.Module, ast.ClassDef)):
            for statement in node.body:
                target = _target(statement)
                if target and not target.startswith("_is_") and target not in ("_transforms_active", "_FAST_PATH"):
                    yield target, statement


def _target(statement: ast.stmt) -> str | None:
    """The name that a statement gives a value to."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None


def _places(root: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where an expression hangs: (parent, field, index); arguments' defaults, annotations and errors are left out."""
    stack: list[ast.AST] = list(root.body) if isinstance(root, ast.FunctionDef) else [root]
    while stack:
        parent = stack.pop(0)
        if isinstance(parent, (ast.Raise, ast.Assert, ast.FunctionDef, ast.Import, ast.ImportFrom)):
            continue
        for field, value in ast.iter_fields(parent):
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or _is_text(parent) or field in ("annotation", "ctx"):
                    continue
                if isinstance(child, ast.expr) and field != "slice":
                    yield parent, field, index
                stack.append(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _put(parent: ast.AST, field: str, index: int | None, value: Any) -> None:
    if index is None:
        setattr(parent, field, value)
    else:
        getattr(parent, field)[index] = value


def plant(name: str, tree: ast.Module) -> None:
    """Put the mutant into the imported module, wherever its functions and values have been handed on already.

    A function keeps its identity and is given the changed code; a value that has changed takes the place of the old
    one in every module that imported it.

    Raises:
        LookupError: the change is in no function and no value that is still in use.
    """
    file = str(OPS / f"{name}.py")
    module = sys.modules["torchnotes.ops." + name.replace("/", ".")]
    before, after = compile(source_of(name), file, "exec"), compile(tree, file, "exec")
    changed = dict(_pairs(before, after))
    reached = 0
    for function in functions_of(file):
        if function.__code__ in changed:
            function.__code__ = changed[function.__code__]
            reached += 1
    old, new = ast.parse(source_of(name)), tree
    fresh = dict(vars(module))
    for index, statement in enumerate(new.body):
        reached += _replace_values(old.body[index], statement, vars(module), fresh, file)
    if not reached:
        raise LookupError("nothing in use holds the changed code")


@functools.cache
def functions_of(file: str) -> list[types.FunctionType]:
    """Every function object alive that was defined in the file, wherever it is kept by now."""
    return [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__.co_filename == file]


def _pairs(before: types.CodeType, after: types.CodeType) -> Iterator[tuple[types.CodeType, types.CodeType]]:
    """Each changed function of the file with what it is changed to."""
    ours, theirs = ([c for c in code.co_consts if isinstance(c, types.CodeType)] for code in (before, after))
    for one, other in zip(ours, theirs, strict=True):
        if one != other:
            yield one, other
            yield from _pairs(one, other)


def _replace_values(old: ast.stmt, new: ast.stmt, current: dict[str, Any], fresh: dict[str, Any], file: str) -> int:
    """How many values of the module or of a class the statement has changed."""
    if isinstance(new, ast.ClassDef) and isinstance(old, ast.ClassDef):
        replaced = 0
        for before, after in zip(old.body, new.body, strict=True):
            name = _target(after)
            if name and ast.dump(before) != ast.dump(after):
                exec(compile(ast.Module([after], []), file, "exec"), fresh)
                setattr(current[new.name], name, fresh[name])
                replaced += 1
        return replaced
    name = _target(new)
    if not name or ast.dump(old) == ast.dump(new):
        return 0
    exec(compile(ast.Module([new], []), file, "exec"), fresh)
    value, holders = current[name], [m for n, m in sys.modules.items() if n.startswith(("torchnotes.", "tests."))]
    for holder in [module for module in holders if vars(module).get(name) is value]:
        setattr(holder, name, fresh[name])
    return 1
