"""The probe on models as they are built: one test for each construction that could break it."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchnotes.diagnostics import probe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(report):
    return [layer.label for layer in report.layers]


def by_label(report):
    return {layer.label: layer for layer in report.layers}


class Block(nn.Module):
    def __init__(self, width=8, *, mode=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu, self.mode = nn.ReLU(inplace=True), mode

    def branch(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        if self.mode is None:
            out = self.branch(x)
        else:
            out = checkpoint(self.branch, x, use_reentrant=self.mode)
        return self.relu(out + x)


def resnet(mode=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(mode=mode), Block(mode=mode), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_residual_convolutional_net():
    report = probe(resnet(), torch.randn(4, 3, 8, 8, generator=seeded()))
    assert labels(report) == ["0", "1.conv", "1.norm", "1.relu", "2.conv", "2.norm", "2.relu", "3", "4"]
    conv = by_label(report)["2.conv"]
    assert (conv.fan_in, conv.fan_out, conv.depth, conv.shape) == (72, 72, 3, (4, 8, 6, 6))
    assert all(layer.gradient is not None for layer in report.layers)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_are_not_counted_twice(reentrant):
    """The forward that runs again in the backward pass is the same call; its gradients are the same numbers."""
    x = torch.randn(4, 3, 8, 8, generator=seeded())
    plain, again = probe(resnet(), x), probe(resnet(reentrant), x)
    assert labels(plain) == labels(again)
    for a, b in zip(plain.layers, again.layers, strict=True):
        assert a.gradient.rms == pytest.approx(b.gradient.rms, rel=1e-5), a.label
        assert a.activation == b.activation
        if a.weight_gradient:
            assert a.weight_gradient.rms == pytest.approx(b.weight_gradient.rms, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_pytorchs_transformer(training):
    """In evaluation it would take a fused path in which no inner module runs; hooks and gradients keep it off."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    report = probe(model, torch.randn(3, 5, 16, generator=seeded()))
    found = by_label(report)
    for name in ("self_attn", "linear1", "linear2", "norm2"):
        assert found[f"layers.1.{name}"].gradient is not None
    assert found["layers.0.self_attn"].weight is not None
    assert report.unused == ()
    frozen = by_label(probe(model.requires_grad_(False), torch.randn(3, 5, 16, generator=seeded())))
    expected = pytest.approx(found["layers.1.linear1"].activation.rms, rel=1e-5 if not training else 0.5)
    assert frozen["layers.1.linear1"].activation.rms == expected


def test_a_transformer_of_functional_calls():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            return x + self.out(F.scaled_dot_product_attention(q, k, v))

    report = probe(nn.Sequential(Attention(), Attention()), torch.randn(2, 5, 16, generator=seeded()))
    # The residual sum is no module's output but the block's own, so the block is recorded.
    assert labels(report)[:4] == ["0.norm", "0.qkv", "0.out", "0"]
    assert by_label(report)["0"].role == "block"


def test_shared_modules_are_kept_apart_by_call():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                self.cell.weight.copy_(0.5 * torch.eye(4))

        def forward(self, x):
            for _ in range(3):
                x = self.cell(x)
            return x

    report = probe(Loop(), torch.ones(2, 4))
    assert labels(report) == ["cell", "cell#1", "cell#2"]
    assert [layer.activation.rms for layer in report.layers] == [0.5, 0.25, 0.125]
    assert report.forward_growth == pytest.approx(0.5)
    assert report.backward_growth == pytest.approx(0.5)


@dataclasses.dataclass
class Output:
    count: int
    scores: torch.Tensor


@pytest.mark.parametrize("form", [lambda y: (y, None), lambda y: {"k": [y]}, lambda y: Output(3, y)])
def test_outputs_in_any_container(form):
    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return form(self.fc(x))

    report = probe(nn.ModuleDict({"inner": Wraps()})["inner"], torch.ones(2, 4))
    assert by_label(report)["fc"].gradient.rms > 0


def test_recurrent_layers_return_tuples():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    report = probe(Model(), torch.randn(3, 7, 4, generator=seeded()))
    assert labels(report) == ["rnn", "head"]
    assert report.layers[0].gradient is not None
    assert report.layers[0].gradient.share_zero == pytest.approx(6 / 7)  # only the last step is read


def test_frozen_layers_are_measured_forward_and_where_gradients_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    report = probe(nn.Sequential(*model), torch.ones(2, 4))
    frozen_first, relu, *_ = report.layers
    assert frozen_first.gradient is None
    assert relu.gradient is None
    model[0].requires_grad_(True)
    middle = by_label(probe(model, torch.ones(2, 4)))["2"]
    assert middle.gradient is not None
    assert middle.weight_gradient is None


def test_a_wholly_frozen_model_is_measured_forward():
    report = probe(nn.Linear(4, 4).requires_grad_(False), torch.ones(2, 4))
    assert report.verdict.backward is None
    assert "gradients not measured" in str(report)


def test_embeddings_take_integers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    report = probe(model, torch.randint(0, 10, (5, 3), generator=seeded()))
    assert [layer.depth for layer in report.layers] == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
    x = torch.randn(8, 32, generator=seeded())
    expected = probe(model, x)
    found = probe(model.to(dtype), x.to(dtype))
    assert found.layers[0].dtype == str(dtype).removeprefix("torch.")
    # 8 bits of mantissa: 0.4 % a value, through four layers.
    assert found.forward_growth == pytest.approx(expected.forward_growth, rel=0.02)
    assert found.backward_growth == pytest.approx(expected.backward_growth, rel=0.02)


def test_under_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = probe(model, torch.ones(2, 8))
    assert report.layers[0].dtype == "bfloat16"
    assert report.layers[0].weight_gradient is not None


def test_a_compiled_model_is_probed_as_its_original():
    """No hook runs inside compiled code; the probe runs the module itself, uncompiled."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    expected = probe(model, torch.ones(2, 4))
    wrapped = torch.compile(model, backend="eager")
    wrapped(torch.ones(2, 4))  # compiled before any hook
    assert labels(probe(wrapped, torch.ones(2, 4))) == ["0", "1"]
    inside = nn.Sequential(wrapped, nn.Linear(4, 4))
    assert labels(probe(inside, torch.ones(2, 4)))[0].endswith("0")
    model.compile(backend="eager")
    model(torch.ones(2, 4))
    again = probe(model, torch.ones(2, 4))
    assert [a.activation for a in again.layers] == [e.activation for e in expected.layers]
    torch._dynamo.reset()


def test_data_parallel_wrappers_are_opened():
    report = probe(nn.DataParallel(nn.Sequential(nn.Linear(4, 4))), torch.ones(2, 4))
    assert labels(report) == ["0"]


def test_a_sparse_gradient():
    model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True, mode="sum"), nn.Linear(4, 2))
    report = probe(model, torch.tensor([[1, 2], [3, 4]]))
    assert report.layers[0].weight_gradient.count == 16


def test_a_module_that_returns_its_input_is_not_recorded_again():
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Dropout(0.5).eval(), nn.Sequential(nn.ReLU()))
    assert labels(probe(model, torch.ones(2, 4))) == ["0", "3.0"]


def test_inference_tensors_as_inputs():
    with torch.inference_mode():
        x = torch.ones(2, 4)
    report = probe(nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), x)
    assert math.isfinite(report.layers[0].activation.rms)
