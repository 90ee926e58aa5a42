"""One quick run of the main experiment, from the command line, shared by every test and worker that reads it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
MODULE = "experiments.vanishing_exploding"


@dataclass(frozen=True)
class QuickRun:
    folder: Path
    stdout: str

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))


def quick_run(factory: pytest.TempPathFactory) -> QuickRun:
    """Run ``--quick`` once; the workers of pytest-xdist wait for the first of them."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = factory.getbasetemp().parent if parallel else factory.getbasetemp()
    logs, stdout = shared / "quick run", shared / "quick run.txt"  # a space, as in a user's path
    with FileLock(shared / "quick run.lock"):
        if not stdout.exists():
            command = [sys.executable, "-m", MODULE, "--quick", "--log-dir", str(logs)]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False, timeout=240
            )
            assert done.returncode == 0, done.stderr
            stdout.write_text(done.stdout, encoding="utf-8")
    return QuickRun(logs / "vanishing_exploding", stdout.read_text(encoding="utf-8"))
