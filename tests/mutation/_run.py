"""Running mutants: one process collects the tests once, and forks for each mutant.

The child puts its mutant into the modules it has inherited and runs the tests of that file until one fails; the tests
that have killed most go first, then the quicker ones. It answers through a pipe with the id of the test that failed.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.mutation._mutants import FILES, OPS, ROOT, Mutant, functions_of, plant

COLLECTED = ("tests/ops", "tests/nn", "torchnotes/ops", "torchnotes/nn")
OPTIONS = ("-q", "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0", "--no-header")
MEMORY = 24 << 30  # bytes of address space; a mutant that asks for more is stopped by the failure
TIMED_OUT = "out of time"


@dataclass
class Outcome:
    """What became of the mutants of one file: the test that killed each, or None."""

    killers: dict[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0


class Server:
    """Collects the tests in this process and runs them in children.

    Args:
        jobs: how many children at a time.
        selected: files to run.
        finished: told of each file's outcome as it comes.
    """

    def __init__(self, jobs: int, selected: dict[str, list[Mutant]], finished: Callable[[str, Outcome], None]) -> None:
        self.jobs, self.selected, self.finished = jobs, selected, finished
        self.broken: list[str] = []

    def run(self) -> None:
        """Collect, then run every mutant of every selected file."""
        os.chdir(ROOT)
        import torch
        import torch._dynamo  # what the tests would each import anew
        import torch._inductor.compile_fx

        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        ignored = [f"--ignore={OPS.relative_to(ROOT)}/kernels/triton_{k}.py" for k in KERNELS]
        code = pytest.main([*OPTIONS, *ignored, "--ignore=tests/ops/kernels", *COLLECTED], plugins=[_Loop(self)])
        if code == pytest.ExitCode.INTERNAL_ERROR:
            self.broken.append("pytest failed, see above")

    def loop(self, items: list[pytest.Item]) -> None:
        """In place of pytest's own loop over the tests."""
        _warm()
        for file in FILES:
            functions_of(str(OPS / f"{file}.py"))  # while the collector still knows them
        gc.freeze()  # a collection in a child would touch, and so copy, every page it shares with this process
        for file, found in self.selected.items():
            chosen = [item for item in items if re.search(FILES[file], item.nodeid, re.IGNORECASE)]
            seconds, failed = self._unharmed(chosen)
            print(f"{file}: {len(found)} mutants, {len(chosen)} tests of {sum(seconds.values()):.0f} s", flush=True)
            if failed:
                self.broken.append(f"{file}: {failed}")
                continue
            self.finished(file, self._mutants(file, found, chosen, seconds))

    def _unharmed(self, items: list[pytest.Item]) -> tuple[dict[str, float], str | None]:
        """The time each test takes without any mutant, and the first that fails even so."""
        child = _Child(items, None, limit=3600)
        answer = child.wait()
        lines = answer.splitlines()
        return {line.split("\t")[1]: float(line.split("\t")[0]) for line in lines if "\t" in line}, next(
            (line for line in lines if "\t" not in line), None
        )

    def _mutants(self, file: str, found: list[Mutant], items: list[pytest.Item], seconds: dict[str, float]) -> Outcome:
        began, outcome, kills = time.monotonic(), Outcome(), Counter[str]()
        limit = 30 + int(5 * sum(seconds.values()))
        running: dict[int, tuple[Mutant, _Child]] = {}
        waiting = list(reversed(found))
        while waiting or running:
            while waiting and len(running) < self.jobs:
                mutant = waiting.pop()
                ordered = sorted(items, key=lambda item: (-kills[item.nodeid], seconds.get(item.nodeid, 0.0)))
                child = _Child(ordered, (file, mutant), limit)
                running[child.pid] = (mutant, child)
            pid, status = os.wait()
            mutant, child = running.pop(pid)
            killer = child.answer(status)
            outcome.killers[mutant.label] = killer
            if killer:
                kills[killer] += 1
            done = len(outcome.killers)
            print(f"{done:4}/{len(found)}  {killer or 'SURVIVES'}  {file}: {mutant.label}", flush=True)
        outcome.seconds = time.monotonic() - began
        return outcome


class _Child:
    """A forked process that runs the items, with a mutant or without, and writes what happened into a pipe."""

    def __init__(self, items: list[pytest.Item], planted: tuple[str, Mutant] | None, limit: int) -> None:
        self.read_end, write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.read_end)
                _in_child(items, planted, limit, write_end)
            finally:
                os._exit(0)
        os.close(write_end)

    def answer(self, status: int) -> str | None:
        with os.fdopen(self.read_end) as pipe:
            text = pipe.read().strip()
        if text == "passed":
            return None
        if text:
            return text
        cause = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return TIMED_OUT if cause == 24 else f"the process dies of signal {cause}"

    def wait(self) -> str:
        with os.fdopen(self.read_end) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        return text


def _in_child(items: list[pytest.Item], planted: tuple[str, Mutant] | None, limit: int, write_end: int) -> None:
    unread = os.open(os.devnull, os.O_WRONLY)
    os.dup2(unread, 1)
    os.dup2(unread, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))  # of processor time, waiting not counted
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if planted is not None:
        try:
            plant(planted[0], planted[1].tree)
        except LookupError:
            os.write(write_end, b"passed\n")  # reported as a survivor, for someone to see
            return
        except Exception as error:
            os.write(write_end, f"it cannot be imported: {type(error).__name__}\n".encode())
            return
    watch = _Watch()
    items[0].config.pluginmanager.register(watch)
    for item, following in zip(items, [*items[1:], None], strict=True):
        began = time.process_time()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if watch.failed:
            os.write(write_end, f"{item.nodeid}\n".encode())
            return
        if planted is None:
            os.write(write_end, f"{time.process_time() - began:.3f}\t{item.nodeid}\n".encode())
    if planted is not None:
        os.write(write_end, b"passed\n")


class _Watch:
    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed


class _Loop:
    def __init__(self, server: Server) -> None:
        self.server = server

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            self.server.broken.append("the tests cannot be collected")
        else:
            self.server.loop(session.items)
        return True


def _warm() -> None:
    """Load what the first test that needs it would load, in every child anew."""
    from tests.nn.test_module_samples import module_infos
    from tests.ops.test_samples import NAMES, op_infos

    module_infos()
    for name in NAMES:
        op_infos(name)


KERNELS = ("cross_entropy", "dense", "dropout", "random")
