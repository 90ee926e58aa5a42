"""The last run of the mutants is of the code as it is, killed them all but the argued ones, and could have failed."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.mutation._equivalent import EQUIVALENT
from tests.mutation._mutants import FILES, LEFT_OUT, OPS, ROOT, fingerprint, labels, mutants, source_of
from tests.mutation.mutate_ops import PAGE, load, out_of_date, report, survivors

RUN = "run python tests/mutation/mutate_ops.py"


def test_every_file_of_the_ops_is_run_or_left_out_for_a_reason():
    found = {str(path.relative_to(OPS).with_suffix("")) for path in OPS.rglob("*.py")}
    assert found == FILES.keys() | LEFT_OUT.keys()
    assert all(LEFT_OUT.values())


def test_the_results_are_of_the_code_as_it_is():
    assert out_of_date(load()) == [], RUN


def test_every_mutant_is_killed_or_argued():
    results = load()
    lived = {(name, what) for name, what in survivors(results)}
    argued = {(name, what) for name, arguments in EQUIVALENT.items() for what in arguments}
    assert lived == argued, RUN
    assert sum(len(results[name]["killers"]) for name in results) >= 150
    assert all(len(why) > 20 for arguments in EQUIVALENT.values() for why in arguments.values())


def test_the_tests_that_killed_are_still_there():
    killers = {killer for result in load().values() for killer in result["killers"].values() if killer}
    defined: dict[str, set[str]] = {}
    for killer in killers:
        if "::" not in killer:
            continue  # it died of time, memory or a signal
        file, name = killer.split("::")[:2]
        if file not in defined:
            tree = ast.parse((ROOT / file).read_text())
            defined[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if file.startswith("tests"):
            assert name.split("[")[0] in defined[file], f"{killer} is gone: {RUN}"


def test_the_page_is_what_the_results_say():
    assert PAGE.read_text() == report(load()), RUN


def test_every_mutant_compiles_and_differs():
    for name in ("softmax", "kernels/random_mask", "_activation"):
        found, original = mutants(name), ast.dump(ast.parse(source_of(name)))
        assert len({mutant.label for mutant in found}) == len(found)
        for mutant in found:
            compile(mutant.tree, name, "exec")
            assert ast.dump(mutant.tree) != original


SOURCE = '"""About it."""\n\nX = 2  # two\n\n\ndef f(x):\n    """Twice x."""\n    return X * x\n'


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (SOURCE.replace("Twice", "Two times"), True),
        (SOURCE.replace("  # two", ""), True),
        (SOURCE.replace("\n\n\n", "\n\n"), True),
        (SOURCE.replace("X = 2", "X = 3"), False),
        (SOURCE.replace("X * x", "X + x"), False),
    ],
)
def test_a_change_of_the_code_and_only_that_changes_the_hash(changed: str, same: bool):
    assert changed != SOURCE
    assert (fingerprint(changed) == fingerprint(SOURCE)) == same


PLANTED = [
    # (file, the change, what must come out otherwise)
    ("softmax", "_jacobian_product: -1 → 1", "torch.func.jvp(lambda x: ops.softmax(x, 0), (x,), (x,))[1]"),
    ("linear", "autocast: 'low' → 'float32'", "torch.tensor(LinearFunction.autocast == 'low')"),
    ("_activation", "ACTIVATIONS: torch.tanh(z) → torch.sigmoid(z)", "ops.dense(x, x, activation='tanh')"),
    ("kernels/random_mask", "LEVELS: 1 << 16 → 1 >> 16", "torch.tensor(random_mask.LEVELS)"),
]


def test_a_planted_change_reaches_the_functions_and_values_in_use():
    script = (
        "import torch\n"
        "from torchnotes import ops\n"
        "from torchnotes.ops.linear import LinearFunction\n"
        "from torchnotes.ops.kernels import random_mask\n"
        "from tests.mutation._mutants import mutants, plant\n"
        "x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])\n"
    )
    for name, change, check in PLANTED:
        assert change in labels(name)
        script += (
            f"before = {check}\n"
            f"plant({name!r}, next(m.tree for m in mutants({name!r}) if m.label == {change!r}))\n"
            f"assert not torch.equal(before, {check}), {change!r}\n"
        )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
