"""The commands and the code that the README and the docs show are run, so that they cannot go stale."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = shlex.split(line, comments=True)
                if command:
                    yield pytest.param(command, id=f"{page.name}: {shlex.join(command)}")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path):
    # One page is one story: its blocks share their names, and write their logs below a scratch folder.
    done = subprocess.run(
        # torch's own forward mode scripts its rules when first used, and warns of that.
        [
            *(sys.executable, "-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
            *("-c", "\n".join(blocks(page, "python"))),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", list(commands()))
def test_shell_commands_mean_something(command):
    """Each is taken apart and its pieces are tried: running them whole is installing the package and hours of work."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):
        command = command[1:]
    program, *rest = command
    if program == "make":
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        done = subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program in ("python", "python3", ".venv/bin/python") and rest[:1] == ["-m"]:
        shows_help = ["-h"] if rest[1] == "venv" else ["--help"]
        done = subprocess.run(
            [sys.executable, "-m", rest[1], *shows_help],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        for option in rest[2:]:
            if option.startswith("--") and rest[1].startswith("experiments"):
                assert option.partition("=")[0] in done.stdout, f"{rest[1]} has no {option}"
    elif program == "torchnotes":
        done = subprocess.run(
            [sys.executable, "-m", "torchnotes.cli", rest[0], "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        for option in rest[1:]:
            if option.startswith("--"):
                assert option.partition("=")[0] in done.stdout, f"torchnotes {rest[0]} has no {option}"
    elif program == "torchrun":
        script = next(word for word in rest if word.endswith(".py"))
        assert (ROOT / script).exists() or script in {"check.py", "train.py"}, f"{script} is not in the repository"
    elif program in ("pip", "cd", "git"):
        pass
    else:
        pytest.fail(f"no test knows how to try {program!r}; teach this one")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_errata_rows_name_real_tests():
    tests = (ROOT / "tests" / "test_errata.py").read_text()
    named = re.findall(r"`(test_g\d+\w*)`", (ROOT / "docs" / "errata.md").read_text())
    assert len(named) == 17
    assert [name for name in named if f"def {name}(" not in tests] == []
