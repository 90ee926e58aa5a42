"""The main experiment, run small from its command line; its logs read back from disk."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.digits import load_digits
from experiments.mean_field import expect
from experiments.vanishing_exploding import linear_nets, reading, tags
from experiments.vanishing_exploding.__main__ import Results, main
from experiments.vanishing_exploding.settings import ACTIVATIONS, NAME, Config, Growth, Size
from experiments.vanishing_exploding.settings import INITS as INIT_LIST
from experiments.vanishing_exploding.training import Epoch, Training
from tests.experiments._runs import MODULE, ROOT, QuickRun

INITS = ("init_small", "init_lecun", "init_xavier", "init_he")
LINEAR = ("linear_0.5", "linear_0.9", "linear_1.1", "linear_1.5")


def read(folder: Path) -> EventAccumulator:
    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1, files
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    return events.Reload()


def curve(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.parametrize("index", range(4))
def test_linear_nets_grow_by_their_factor_to_six_digits(run: QuickRun, index: int) -> None:
    factor = (0.5, 0.9, 1.1, 1.5)[index]  # SPEC C1 to C4: W = c·I multiplies by c
    found = run.results["linear"][index]
    assert found["weights"] == f"W = {factor}·I"
    assert found["forward"] == pytest.approx(factor, rel=1e-6)
    assert found["backward"] == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(("variant", "factor"), list(zip(LINEAR, (0.5, 0.9, 1.1, 1.5), strict=True)))
def test_depth_curves_of_linear_nets_read_back(run: QuickRun, variant: str, factor: float) -> None:
    events = read(run.folder / variant)
    forward = curve(events, f"{tags.DEPTH}/1 linear nets: activations")
    backward = curve(events, f"{tags.DEPTH}/2 linear nets: gradients")
    # x = [1, 1] has rms 1, so layer l has c^l; the gradient of the sum is 1 at the last of 150 layers.
    # Event files hold float32: 7 digits of a number up to 45.
    assert forward == pytest.approx({layer: layer * math.log10(factor) for layer in range(1, 151)}, abs=1e-5)
    assert backward == pytest.approx({layer: (150 - layer) * math.log10(factor) for layer in range(1, 151)}, abs=1e-5)


def test_every_net_grows_as_known(run: QuickRun) -> None:
    nets = run.results["nets"]
    assert len(nets) == 16
    for net in nets:
        for direction in ("forward", "backward"):
            ratio = net[direction] / net[f"known_{direction}"]
            assert abs(math.log(ratio)) < net["tolerance"], net


def test_training_moves_only_the_net_whose_signal_is_kept(run: QuickRun) -> None:
    last = {training["weights"]: training["epochs"][-1] for training in run.results["trainings"]}
    assert set(last) == {"0.01²", "1/n", "2/(n_in+n_out)", "2/n"}
    # A net that says the same of every image has the loss ln 10; two epochs leave the three others there.
    for weights in ("0.01²", "1/n", "2/(n_in+n_out)"):
        assert last[weights]["loss"] == pytest.approx(math.log(10), abs=0.01)
    assert last["2/n"]["loss"] < math.log(10) - 0.02


@pytest.mark.parametrize("variant", INITS)
def test_each_init_has_curves_histograms_and_a_row_of_hparams(run: QuickRun, variant: str) -> None:
    events = read(run.folder / variant)
    found = events.Tags()
    scalars = found["scalars"]
    for card in ("3 ReLU nets: activations", "4 ReLU nets: gradients", "5 tanh nets: activations"):
        assert sorted(curve(events, f"{tags.DEPTH}/{card}")) == list(range(1, 21))
    for card in ("loss", "accuracy on dev images", "accuracy on training images"):
        assert sorted(curve(events, f"{tags.TRAINING.format(rate=0.003)}/{card}")) == [1, 2]
    # The same over training steps, layer by layer, is written by the monitor: its third and fourth group.
    for group in (tags.MONITOR + 2, tags.MONITOR + 3):
        assert sum(tag.startswith(f"{group} ") for tag in scalars) == 30
    for card in ("ReLU, log10 if not 0", "tanh, untrained", "sigmoid, untrained"):
        assert len(events.Histograms(f"{tags.HISTOGRAMS}/{card}")) == 19  # hidden layers of 20
    hparams = {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert hparams <= set(events.summary_metadata)


def test_summary_holds_the_reading_and_the_heat_map(run: QuickRun) -> None:
    events = read(run.folder / "summary")
    (text,) = events.Tensors("0 What was measured and what it means/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (run.folder / "report.md").read_text(encoding="utf-8")
    (image,) = events.Images(f"{tags.FIGURES}/init × activation")
    assert image.width > 800
    assert (run.folder / "growth_per_layer.png").read_bytes().startswith(b"\x89PNG")


def test_prints_one_table_its_reading_and_how_to_see_the_curves(run: QuickRun) -> None:
    text = " ".join(run.stdout.split())
    assert text.count("By what factor each layer changes the signal's rms") == 1
    for claim in run.results["claims"]:
        assert f"{claim['text']} {claim['evidence']}" in text
    assert text.count("Held:") == 8
    assert text.count("Not judged:") == 2
    assert "-m tensorboard.main --logdir" in text
    assert "http://localhost:6006/?smoothing=0" in text
    assert max(map(len, run.stdout.splitlines()[:40])) <= 80


def run_here(folder: Path, seed: int) -> Results:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        return main(Config(log_dir=folder, quick=True, depth=4, seed=seed), Console(file=nowhere))


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    first, again, other = (run_here(tmp_path, seed) for seed in (0, 0, 1))
    assert again == first
    assert [net.forward for net in other.nets] != [net.forward for net in first.nets]
    assert [training.epochs for training in other.trainings] != [training.epochs for training in first.trainings]
    # Three runs into one folder: what the earlier ones left is gone, and its curves with it.
    losses = read(tmp_path / NAME / "init_he").Scalars(f"{tags.TRAINING.format(rate=0.003)}/loss")
    he = next(training for training in other.trainings if training.weights == "2/n")
    assert [event.value for event in losses] == pytest.approx([epoch.loss for epoch in he.epochs], rel=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_interrupted_run_leaves_readable_logs(tmp_path: Path) -> None:
    # The full run: of a quick one nothing may be left to interrupt once the first loss has been seen.
    command = [sys.executable, "-m", MODULE, "--log-dir", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, ignores Ctrl-C, and so would everything it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it takes no lock
    )
    try:
        tag = f"{tags.TRAINING.format(rate=0.003)}/loss"
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            files = list((tmp_path / NAME / "init_small").glob("events*"))
            if any(tag.encode() in file.read_bytes() for file in files):
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "Interrupted. What was logged so far can be read in" in stdout
    for variant in LINEAR:
        assert len(curve(read(tmp_path / NAME / variant), f"{tags.DEPTH}/1 linear nets: activations")) == 150
    assert 1 in curve(read(tmp_path / NAME / "init_small"), tag)
    assert not (tmp_path / NAME / "report.md").exists()


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in ("--device", "--depth", "--seed", "--log-dir", "--quick"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 2}, "depth must be at least 3, got 2; growth per layer is a slope over several layers"),
        ({"device": "gpu"}, r"device must be one that PyTorch can use here, got 'gpu' \(.+\); use --device cpu"),
    ],
)
def test_refuses_options_that_cannot_be_run(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_sizes_are_those_of_the_story() -> None:
    size = Size.of(Config())
    assert (size.linear_depth, size.signal_depth, size.signal_width) == (150, 50, 256)
    assert (size.trained_depth, size.trained_width, size.epochs) == (30, 128, 20)
    assert size.rates == (0.001, 0.003, 0.01, 0.03)
    assert Size.of(Config(depth=7)) == replace(size, linear_depth=7, signal_depth=7, trained_depth=7)


LINEAR_GROWTH = [Growth("linear", f"W = {c}·I", c, c, c, c, linear_nets.SIX_DIGITS) for c in linear_nets.FACTORS]
NETS = [
    Growth(label, init.variance, forward, backward, forward, backward, 0.04)
    for label, forward, backward in (
        ("ReLU", 1.0, 1.0),
        ("leaky ReLU", 1.0, 1.0),
        ("tanh", 0.9, 0.9),
        ("sigmoid", 1, 0.2),
    )
    for init in INIT_LIST
]


def trained(accuracies: dict[str, float]) -> list[Training]:
    return [Training(weights, 0.003, (Epoch(1.0, 0.5, accuracy),)) for weights, accuracy in accuracies.items()]


def outcomes(linear: list[Growth], accuracies: dict[str, float]) -> dict[str, bool | None]:
    claims = reading.claims(Size(), linear, NETS, trained(accuracies))
    return {claim.text: claim.held for claim in claims}


ALL_AS_TOLD = {"0.01²": 0.1, "1/n": 0.1, "2/(n_in+n_out)": 0.12, "2/n": 0.93}


def test_reading_says_so_when_a_claim_does_not_hold() -> None:
    linear, learns, stuck = (
        "A linear net with every W = c·I multiplies the signal by c at every layer, forward and backward.",
        "A ReLU net 30 deep learns the digits when it starts from variance 2/n.",
        "From the other three inits the same net stays at chance at every rate.",
    )
    told = outcomes(LINEAR_GROWTH, ALL_AS_TOLD)
    assert told[linear]
    assert told[learns]
    assert told[stuck]
    sixth_digit = [*LINEAR_GROWTH[:3], replace(LINEAR_GROWTH[3], backward=1.500002)]
    assert outcomes(sixth_digit, ALL_AS_TOLD)[linear] is False
    assert outcomes(LINEAR_GROWTH, {**ALL_AS_TOLD, "2/n": 0.5})[learns] is False
    assert outcomes(LINEAR_GROWTH, {**ALL_AS_TOLD, "1/n": 0.5})[stuck] is False


def test_page_in_the_docs_shows_the_table_of_this_experiment() -> None:
    page = (ROOT / "docs" / "vanishing_exploding.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    shown = {(row[0], row[1]): row for row in rows if len(row) == 7 and row[0] != "net"}
    assert len(shown) == 20
    size, x = Size(), load_digits(seed=0, dtype=torch.float64).x_train[:256]
    sizes = [64] + [size.signal_width] * (size.signal_depth - 1) + [10]
    for activation, label in ACTIVATIONS.items():
        for init in INIT_LIST:
            variances = [init.formula(n_in, n_out) for n_in, n_out in pairwise(sizes)]
            known = expect(activation, sizes, variances, float(x.square().mean()))
            _, _, forward, known_forward, backward, known_backward, _ = shown[label, init.variance]
            assert (known_forward, known_backward) == (f"{known.forward_growth:.3f}", f"{known.backward_growth:.3f}")
            assert float(forward) == pytest.approx(known.forward_growth, rel=0.04)
            assert float(backward) == pytest.approx(known.backward_growth, rel=0.04)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_unchanged_on_cuda(tmp_path: Path) -> None:
    on_cpu = run_here(tmp_path / "cpu", 0)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        config = Config(log_dir=tmp_path / "cuda", quick=True, depth=4, device="cuda")
        on_cuda = main(config, Console(file=nowhere))
    for here, there in zip(on_cpu.linear + on_cpu.nets, on_cuda.linear + on_cuda.nets, strict=True):
        # float64 on both, from the same weights: only the order of sums differs.
        assert there.forward == pytest.approx(here.forward, rel=1e-9)
        assert there.backward == pytest.approx(here.backward, rel=1e-9)
