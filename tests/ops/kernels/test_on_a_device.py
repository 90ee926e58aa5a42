"""Run the kernels' cases: in Triton's interpreter on a CPU, and on a GPU where there is one.

The interpreter is chosen by an environment variable that Triton reads when it is imported, and this process may have
imported it already (the compiler does). So each file of cases gets a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CASES = ["dropout_cases.py", "dense_cases.py", "cross_entropy_cases.py"]

pytestmark = [
    pytest.mark.timeout(600),  # 20 s each on an idle machine; the interpreter is slow on a busy one
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed (it exists for Linux on x86-64)"
    ),
]


def run(cases: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / cases)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TORCHNOTES_"))}
    done = subprocess.run(
        command,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        cwd=HERE.parents[2],
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def version(package):
    return tuple(int(number) for number in metadata.version(package).split(".")[:2])


@pytest.mark.parametrize("cases", CASES)
def test_in_the_interpreter(cases):
    if cases.startswith("cross_entropy") and version("triton") < (3, 7) and version("numpy") >= (2, 5):
        pytest.skip("the interpreter of Triton 3.6 counts a loop's end by int() of an array, which numpy 2.5 refuses")
    run(cases, TRITON_INTERPRET="1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; none is visible here")
@pytest.mark.parametrize("cases", CASES)
def test_on_a_gpu(cases):
    run(cases, TRITON_INTERPRET="0")
