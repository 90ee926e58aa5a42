"""What is in the event files, read back from disk with TensorBoard's own reader."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from torchnotes.diagnostics import SignalMonitor, probe
from torchnotes.diagnostics import tensorboard as board
from torchnotes.diagnostics import tensorboard_sink as sinks
from torchnotes.diagnostics.history import StepRecord
from torchnotes.init import initialize_


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def deep(depth=6, width=8):
    net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())], nn.Linear(width, 3))
    initialize_(net, generator=seeded())
    return net


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    return events


def scalars(events, tag):
    return [(item.step, item.value) for item in events.Scalars(tag)]


ALONG = f"1 {board.ALONG}"


def test_a_probes_depth_curves_have_one_point_for_each_layer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    report = probe(deep(), torch.randn(8, 8, generator=seeded(1)), torch.zeros(8, 3))
    with SummaryWriter(str(tmp_path)) as writer:
        report.to_tensorboard(writer)
    events = read(tmp_path)
    linear = [layer for layer in report.layers if layer.role == "weight"]
    for part, moments in (("activations", "activation"), ("gradients", "gradient"), ("weights", "weight")):
        points = scalars(events, f"{ALONG}/{part}")
        assert [step for step, _ in points] == list(range(1, 8))
        assert [value for _, value in points] == pytest.approx(
            [getattr(row, moments).log10_rms for row in linear], abs=1e-6
        )
    page = events.Tensors("Verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert page.startswith("**Activations healthy, gradients healthy.**")
    assert "| 1 | 0 | Linear |" in page
    assert "| 7 | 12 | Linear |" in page  # the number by which the curves count
    assert "| zeros |" in page


def test_a_page_without_zeros_has_no_column_for_them():
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    page = board.verdict_page(probe(net, torch.randn(8, 8, generator=seeded(1))), ["* noticed"])
    assert "zeros" not in page
    assert page.index("* noticed") < page.index("| no. |")  # what is below the table nobody scrolls to
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {7}


def test_a_page_does_not_call_healthy_what_was_not_measured():
    page = board.verdict_page(probe(nn.Sequential(nn.LayerNorm(8), nn.ReLU()), torch.randn(4, 8, generator=seeded(1))))
    assert page.startswith("**Nothing that could be judged.**")
    assert "activations not measured, gradients not measured" in page
    assert page.count("probe(model, inputs)") == 1


def test_exact_zeros_are_left_out_not_drawn(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    net = deep()
    with torch.no_grad():
        net[4].weight.zero_()
        net[4].bias.zero_()
        net[6].bias.fill_(1.0)
    report = probe(net, torch.randn(8, 8, generator=seeded(1)))
    with SummaryWriter(str(tmp_path)) as writer:
        report.to_tensorboard(writer)
    points = scalars(read(tmp_path), f"{ALONG}/activations")
    assert [step for step, _ in points] == [1, 2, 4, 5, 6, 7]
    assert all(math.isfinite(value) and value > -5 for _, value in points)


def train(net, steps, monitor):
    opt = torch.optim.SGD(net.parameters(), lr=0.01)
    x, y = torch.randn(16, 8, generator=seeded(1)), torch.randint(0, 3, (16,), generator=seeded(2))
    for _ in range(steps):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        monitor.step(loss)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    records = []
    with SignalMonitor(deep(), folder, every=2, hparams={"init": "he", "lr": 0.01}, sinks=[records.append]) as monitor:
        train(monitor.model, 40, monitor)
    return read(folder), records


def test_health_is_written_at_every_logged_step(run):
    events, records = run
    for name, value in (
        ("loss", lambda r: r.loss),
        ("growth of activations a layer", lambda r: r.forward_growth),
        ("growth of gradients a layer", lambda r: r.backward_growth),
    ):
        points = scalars(events, f"2 {sinks.HEALTH}/{name}")
        assert [step for step, _ in points] == list(range(0, 40, 2))
        assert [v for _, v in points] == pytest.approx([value(r) for r in records], rel=1e-6)
    updates = scalars(events, f"2 {sinks.HEALTH}/update ÷ weight, log10 median")
    assert updates[0][1] == pytest.approx(math.log10(np.median(list(records[0].update_ratio.values()))), abs=1e-6)


def test_each_layer_over_training_is_thinned_by_the_stated_rule(run):
    events, records = run
    tag = f"3 {sinks.EACH.format(part='Activations')}/1 0"
    points = scalars(events, tag)
    # 20 logged steps, two training steps apart: the first 8 of them, then those whose number 4, then 8 divides.
    assert [step for step, _ in points] == [*range(0, 16, 2), 16, 24, 32]
    assert points[0][1] == pytest.approx(records[0].layers[0].activation.log10_rms, abs=1e-6)


def test_depth_curves_of_the_first_and_the_last_step(run):
    events, records = run
    for part, index in (("at the first step", 0), ("at the last step", -1)):
        points = scalars(events, f"{ALONG}/gradients, {part}")
        rows = [layer for layer in records[index].layers if layer.role == "weight"]
        assert [v for _, v in points] == pytest.approx([layer.gradient.log10_rms for layer in rows], abs=1e-6)


def test_histograms_pictures_verdict_and_hparams(run):
    events, _ = run
    tags = events.Tags()
    histogram = f"5 {sinks.VALUES.format(part='activations')}/001 0"
    assert [item.step for item in events.Histograms(histogram)] == [0, 18]  # the 1st and the 10th logged step
    assert sum(events.Histograms(histogram)[0].histogram_value.bucket) == 128
    pictures = [tag for tag in tags["images"] if tag.startswith("7 ")]
    assert [tag.partition("/")[2] for tag in pictures] == ["activations", "gradients", "units that were zero"]
    assert {events.Images(tag)[0].step for tag in pictures} == {38}
    for when, step in (("first", 0), ("last", 38)):
        (page,) = events.Tensors(f"Verdict at the {when} logged step/text_summary")
        assert page.step == step
    assert scalars(events, "9 When the run ended/last loss")
    assert any(tag.startswith("_hparams_") for tag in events.summary_metadata)


def test_groups_can_be_numbered_from_elsewhere_and_a_writer_stays_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        with SignalMonitor(deep(), writer, every=1, first_group=6, histograms=False) as monitor:
            train(monitor.model, 2, monitor)
        writer.add_scalar("still open", 1.0, 0)
    tags = read(tmp_path).Tags()
    assert "still open" in tags["scalars"]
    assert {tag.split()[0] for tag in tags["scalars"]} == {"6", "7", "8", "9", "still"}
    assert tags["histograms"] == []


def named(depth, path, layer):
    """Deep, with the long names of a real model: each point of a curve carries its layer's name."""
    net = nn.Sequential()
    for number in range(depth):
        net.add_module(layer.format(number), nn.Linear(8, 8))
        net.add_module(f"relu_{number}", nn.ReLU())
    net.add_module("out", nn.Linear(8, 3))
    initialize_(net, generator=seeded())
    for part in reversed(path.split(".")):
        net = nn.Sequential(OrderedDict([(part, net)]))
    return net


@pytest.mark.parametrize(
    ("path", "layer", "longest"), [("net", "{}", 6), ("bert.encoder.layers", "{:02}_attention_output_dense", 45)]
)
def test_a_thousand_logged_steps_of_fifty_layers_stay_under_a_megabyte(tmp_path, path, layer, longest):
    """The size is that of the records, whatever made them: one real record, written a thousand times."""
    net = named(50, path, layer)
    records = []
    with SignalMonitor(net, None, every=1, sinks=[records.append]) as monitor:
        train(net, 3, monitor)
    sink = sinks.TensorBoardSink(tmp_path)
    last = records[-1]
    rows = [row for row in last.layers if row.role == "weight"]
    assert len(rows) == 51
    assert max(len(row.label) for row in rows[:-1]) == longest
    generator = np.random.default_rng(0)
    for step in range(1000):
        if sink.wants_histograms(step):
            for row in rows:
                for part in ("activations", "gradients"):
                    sink.histogram(step, part, f"{row.depth:03} {row.label}", generator.normal(size=4096))
        fields = {name: getattr(last, name) for name in last.__dataclass_fields__}
        sink(StepRecord(**{**fields, "step": step}))
    # Nothing compresses: every layer and unit another colour.
    sink.close({row.label: generator.random(256).tolist() for row in rows})
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 100_000 < size < 1_000_000


def test_the_thinning_rules():
    kept = [count for count in range(1000) if sinks.is_thinned_in(count)]
    assert kept[:18] == [*range(16), 16, 20]
    assert len(kept) == 40
    fewer = [count for count in range(1000) if sinks.is_thinned_in(count, 8)]
    assert fewer[:14] == [*range(8), 8, 12, 16, 24, 32, 48]
    assert len(fewer) == 22
    assert [count for count in range(2000) if sinks.has_histograms(count)] == [0, 9, 99, 999]
