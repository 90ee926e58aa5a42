"""No two files of the diagnostics import one another, not even inside a function."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import torchnotes.diagnostics

PACKAGE = Path(torchnotes.diagnostics.__file__).parent
PREFIX = "torchnotes.diagnostics"


def imported(source, names):
    """The files of the package that one imports; what only the type checker sees does not count."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            if node.module == PREFIX:
                yield from (alias.name for alias in node.names if alias.name in names)
            elif node.module.startswith(f"{PREFIX}."):
                yield node.module.removeprefix(f"{PREFIX}.")


def graph():
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return {name: set(imported((PACKAGE / f"{name}.py").read_text(), names)) for name in names}


def test_imports_have_no_circle():
    order = list(TopologicalSorter(graph()).static_order())  # raises CycleError, which names the circle
    assert order.index("records") < order.index("verdict") < order.index("report") < order.index("monitor")


def test_a_function_does_not_hide_behind_a_file_of_its_name():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert not files & set(torchnotes.diagnostics.__all__)
