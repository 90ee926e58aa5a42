"""The command and the assertion: exit codes, what is printed, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from torchnotes.cli import main
from torchnotes.diagnostics import UnhealthySignal, assert_healthy
from torchnotes.init import initialize_

MODELS = """
import torch
from torch import nn
from torchnotes.init import initialize_

def net(scheme):
    model = nn.Sequential(*[m for _ in range(40) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    initialize_(model, scheme)
    return model

def good(): return net("he")
def bad(): return net("small")
def text(): return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 4))
def whole(): return net("he"), torch.ones(3, 32), torch.tensor([0, 1, 2])
def broken(): raise OSError("no such weights")
def number(): return 3
not_callable = 3
"""


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    (tmp_path / "models_for_probe.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("models_for_probe", None)


def call(*args):
    return main(["probe", *args])


def test_a_healthy_model(capsys):
    assert call("models_for_probe:good", "--input", "64x32", "--target", "classes:4") == 0
    assert "Verdict: activations healthy, gradients healthy" in capsys.readouterr().out


def test_a_vanishing_signal(capsys):
    assert call("models_for_probe:bad", "--input", "64x32") == 1
    assert "activations vanishing" in capsys.readouterr().out


def test_json(capsys):
    assert call("models_for_probe:bad", "--input", "64x32", "--target", "64x4", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["backward"] == "vanishing"
    assert found["loss"] is not None
    assert len(found["layers"]) == 81


def test_integers_for_embeddings_and_inputs_from_the_factory(capsys):
    assert call("models_for_probe:text", "--input", "6x5:int:50", "--evaluation") == 0
    assert call("models_for_probe:whole") == 0
    assert "Embedding" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["models_for_probe:broken", "--input", "2x3"], "no probe was made: OSError: no such weights"),
        (["models_for_probe:good"], "input must be given where the factory returns only a model"),
        (["models_for_probe:good", "--input", "2,3"], "input must be a shape such as 32x784"),
        (["models_for_probe:good", "--input", "2x3"], "no probe was made: RuntimeError"),
        (["models_for_probe:good", "--input", "2x32", "--target", "classes:many"], "target must be classes:10, say"),
        (["models_for_probe:number", "--input", "2x3"], "factory must return a torch.nn.Module"),
        (["models_for_probe:absent", "--input", "2x3"], "models_for_probe has no 'absent'"),
        (["models_for_probe:not_callable", "--input", "2x3"], "factory must be callable"),
        (["models_for_probe", "--input", "2x3"], "factory must be written package.module:factory"),
    ],
)
def test_no_verdict_is_exit_code_2(capsys, args, words):
    assert call(*args) == 2
    assert words in capsys.readouterr().err


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "torchnotes.cli", "probe", "models_for_probe:bad", "--input", "8x32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Verdict: activations vanishing" in done.stdout


def test_assert_healthy():
    net = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(32, 32), nn.ReLU())])
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    initialize_(net, generator=torch.Generator().manual_seed(1))
    assert assert_healthy(net, x).healthy
    initialize_(net, "small")
    with pytest.raises(UnhealthySignal, match=r"not healthy: activations vanishing, gradients vanishing") as caught:
        assert_healthy(net, x)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.verdict.forward == "vanishing"
