"""Find a Chromium, and start a TensorBoard server for it to look at."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--no-sandbox",  # the sandbox needs a user that containers do not have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Path of the first Chromium there is: $TORCHNOTES_BROWSER, one on the path, or a Mac's."""
    candidates = [
        os.environ.get("TORCHNOTES_BROWSER"),
        *map(shutil.which, NAMES),
        *(p for p in MAC if Path(p).exists()),
    ]
    return next((path for path in candidates if path), None)


def chromium_or_skip() -> str:
    """Skip without a browser; fail instead where TORCHNOTES_REQUIRE_BROWSER=1 says that there must be one."""
    path = find_chromium()
    if path is None:
        reason = "no Chromium found: install it (apt-get install chromium) or name one in TORCHNOTES_BROWSER"
        if os.environ.get("TORCHNOTES_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """The real server on a free port; yields its address, stops it afterwards."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as server:
        try:
            yield _address(server, said)
        finally:
            server.terminate()
            server.wait(timeout=20)


def _address(server: subprocess.Popen, said: IO[str]) -> str:
    for _ in range(600):
        said.seek(0)
        text = said.read()
        if found := re.search(r"http://127\.0\.0\.1:\d+", text):
            return found[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"TensorBoard gave no address:\n{text}")
