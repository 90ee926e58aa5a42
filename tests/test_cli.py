"""The ``torchnotes`` command: finding the subcommand, and what ``gradcheck`` prints and returns."""

import json
import subprocess
import sys

import pytest

from torchnotes import cli

FACTORIES = """
import torch
from torch import nn

class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x
    @staticmethod
    def backward(ctx, g):
        return 3 * g

def right():
    return nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4, 2), nn.functional.mse_loss

def only_loss():
    return nn.Linear(3, 2), torch.ones(4, 3), torch.mean

def wrong():
    return Wrong.apply, torch.ones(3)

def mapping():
    return {"model": nn.Linear(3, 1), "inputs": torch.ones(2, 3), "loss": torch.sum}

def nothing():
    return 3

def broken():
    return nn.Linear(3, 2), torch.ones(4, 5), torch.mean

number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_checks", raising=False)
    return "my_checks:"


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("right", 0, "CORRECT"), ("only_loss", 0, "CORRECT"), ("mapping", 0, "CORRECT"), ("wrong", 1, "1.5 × too large")],
)
def test_exit_code_and_table(factories, capsys, name, code, says):
    assert cli.main(["gradcheck", factories + name]) == code
    out = capsys.readouterr().out
    assert says in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_checks", "must be written package.module:factory, got 'my_checks'"),
        ("my_checks:absent", "my_checks has no 'absent'"),
        ("my_checks:number", "must be callable without arguments, got int"),
        ("my_checks:nothing", "must return (model, inputs, target, loss)"),
        ("my_checks:broken", "shapes cannot be multiplied"),
        ("no_such_module:x", "No module named 'no_such_module'"),
    ],
)
@pytest.mark.usefixtures("factories")
def test_what_cannot_be_checked_exits_with_2_and_says_why(capsys, spec, says):
    assert cli.main(["gradcheck", spec]) == 2
    assert says in capsys.readouterr().err


def test_json_is_json(factories, capsys):
    assert cli.main(["gradcheck", factories + "wrong", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "wrong"
    assert report["by_parameter"]["input[0]"]["wrong"] == 3


def test_markdown(factories, capsys):
    assert cli.main(["gradcheck", factories + "right", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("**CORRECT")


def test_help_version_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert "gradcheck" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("torchnotes ")
    assert cli.main(["nonsense"]) == 2
    assert "no command 'nonsense'" in capsys.readouterr().err
    assert cli.main([]) == 2


def test_help_of_the_subcommand_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gradcheck", "--help"])
    assert stopped.value.code == 0
    assert "Exit code: 0 correct; 1 wrong or suspect; 2 no verdict" in " ".join(capsys.readouterr().out.split())


def test_subcommands_are_imported_only_when_asked_for():
    code = "import sys, torchnotes.cli; print('tyro' in sys.modules, 'torchnotes.gradcheck' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
