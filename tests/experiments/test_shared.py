"""What all experiments share: data, logs, table, threads."""

import doctest
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import datasets
from threadpoolctl import threadpool_info

import experiments.console
import experiments.vanishing_exploding.random_nets
from experiments.config import CommonConfig
from experiments.console import Claim, Table, markdown_reading, record
from experiments.digits import load_digits
from experiments.figures import growth_heat_map
from experiments.logs import VariantLogs, how_to_open, save_figure
from experiments.threads import one_thread


def test_digits_are_normalised_by_the_training_set_alone() -> None:
    digits = load_digits(seed=0, dtype=torch.float64)
    assert (len(digits.x_train), len(digits.x_dev)) == (1437, 360)
    varying = digits.x_train.std(dim=0) > 0  # pixels that are always 0 are centred only
    assert digits.x_train.mean(dim=0).abs().max() < 1e-12
    torch.testing.assert_close(
        digits.x_train.var(dim=0, unbiased=False)[varying], torch.ones(int(varying.sum()), dtype=torch.float64)
    )
    assert digits.x_dev.mean(dim=0).abs().max() > 0.01
    raw = torch.from_numpy(datasets.load_digits().data)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    mean, std = raw[order[:1437]].mean(dim=0), raw[order[:1437]].std(dim=0, unbiased=False)
    torch.testing.assert_close(digits.x_dev[:, varying], ((raw[order[1437:]] - mean) / std)[:, varying])


def test_digits_are_split_by_seed() -> None:
    assert torch.equal(load_digits(seed=3).y_dev, load_digits(seed=3).y_dev)
    assert not torch.equal(load_digits(seed=3).y_dev, load_digits(seed=4).y_dev)


def test_logs_of_an_earlier_run_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    old = tmp_path / "a" / "events.out.tfevents.1.host.2.0"
    kept = [tmp_path / "a" / "notes.txt", tmp_path / "b" / "events.out.tfevents.1.host.2.0"]
    for path in (old, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with VariantLogs(tmp_path) as logs:
        assert old.exists()
        logs["a"].add_scalar("x", 1.0, 0)
        assert logs["a"] is logs["a"]
    assert not old.exists()
    assert len(list((tmp_path / "a").glob("events*"))) == 1
    assert all(path.exists() for path in kept)


def test_table_says_the_same_on_a_terminal_and_in_markdown() -> None:
    table = Table("Title", ("net", "init", "growth"), "How to read it.")
    table.rows += [("ReLU", "2/n", "1.000"), None, ("tanh", "1/n", "0.970")]
    out = io.StringIO()
    table.print(Console(file=out, width=60))
    assert table.markdown().splitlines() == [
        "| net | init | growth |",
        "|---|---|---:|",
        "| ReLU | 2/n | 1.000 |",
        "| tanh | 1/n | 0.970 |",
        "",
        "How to read it.",
    ]
    for word in ("Title", "ReLU", "0.970", "How to read it."):
        assert word in out.getvalue()


def test_reading_states_each_outcome() -> None:
    claims = [Claim("One.", True, "Seen 1."), Claim("Two.", False, "Seen 2."), Claim("Three.", None, "Seen 3.")]
    assert markdown_reading(claims).splitlines() == [
        "- **Held:** One. Seen 1.",
        "- **Did not hold:** Two. Seen 2.",
        "- **Not judged:** Three. Seen 3.",
    ]


def test_record_leaves_claims_tables_and_the_figures_of_this_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "some_experiment"
    folder.mkdir()
    old = [folder / "left_by_an_earlier_run.png", folder / "reading.json"]
    for path in old:
        path.touch()
    panels = {"forward": np.array([[0.5], [2.0]])}
    with VariantLogs(folder) as logs:
        assert not any(path.exists() for path in old)
        for name, caption in (("b", "What is  seen\n first."), ("a", "")):
            figure = growth_heat_map("Title", ["r", "s"], ["c"], panels)
            save_figure(logs["summary"], f"1 Group/Card {name}", figure, folder / f"{name}.png", caption)
    table = Table("Title", ("net", "growth"), "How to read it.", [("ReLU", "1.000")])
    claims = [Claim("One.", np.True_, "Seen 1."), Claim("Two.", None, "Too short.")]
    config = CommonConfig(seed=3, quick=True, log_dir=tmp_path)
    path = record("some_experiment", config, claims, [table])
    assert path == folder / "reading.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "experiment": "some_experiment",
        "torch": torch.__version__.partition("+")[0],
        "options": {"device": "cpu", "seed": 3, "log_dir": str(tmp_path), "quick": True},
        "claims": [
            {"text": "One.", "held": True, "evidence": "Seen 1."},
            {"text": "Two.", "held": None, "evidence": "Too short."},
        ],
        "tables": [{"title": "Title", "markdown": table.markdown()}],
        "figures": [
            {"file": "b.png", "title": "Card b", "caption": "What is seen first."},
            {"file": "a.png", "title": "Card a", "caption": ""},
        ],
    }


def test_one_thread_inside_and_as_before_outside() -> None:
    before, pools = torch.get_num_threads(), {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    with one_thread():
        assert torch.get_num_threads() == 1
        assert all(pool["num_threads"] == 1 for pool in threadpool_info())
    assert torch.get_num_threads() == before
    assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == pools


def test_how_to_open_names_a_command_that_works_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr("sys.executable", str(Path.cwd() / ".venv" / "bin" / "python"))
    command, address = how_to_open(Path("runs/x")).splitlines()
    assert command == "make tensorboard   (or: .venv/bin/python -m tensorboard.main --logdir runs/x --port 6006)"
    assert address == "then look at http://localhost:6006/?smoothing=0"
    monkeypatch.setattr("sys.executable", "/elsewhere/bin/python")
    assert 'python -m tensorboard.main --logdir "/tmp/my logs/x"' in how_to_open(Path("/tmp/my logs/x"))


def test_heat_map_colours_by_growth() -> None:
    figure = growth_heat_map("Title", ["a", "b"], ["c"], {"forward": np.array([[0.5], [2.0]])})
    image = figure.axes[0].images[0]
    blue, red = (image.cmap(image.norm(value)) for value in np.log10([0.5, 2.0]))
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert [text.get_text() for text in figure.axes[0].texts] == ["×0.500", "×2.000"]


@pytest.mark.parametrize("module", [experiments.console, experiments.vanishing_exploding.random_nets])
def test_doctests(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
