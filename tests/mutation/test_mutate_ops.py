"""The mutation script plants enough bugs, each of them a change that compiles."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate_ops", HERE / "mutate_ops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_compiles_and_differs(script: ModuleType):
    found = [(module, source) for module in script.TESTS for _, source in script.mutants(module)]
    assert len(found) >= 150
    for module, source in found[::7]:
        compile(source, module, "exec")
        original = (script.ROOT / "torchnotes" / "ops" / f"{module}.py").read_text()
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(original))
