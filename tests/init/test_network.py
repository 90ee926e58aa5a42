"""A whole network: the activation after each layer is found, and the variance follows from it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchnotes.init import initialize_


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


class Functional(nn.Module):
    """The order of registration lies about the order of execution; only the graph knows."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.last = nn.Linear(8, 2)
        self.second = nn.Linear(8, 8)
        self.first = nn.Linear(4, 8)

    def forward(self, x):
        x = F.leaky_relu(self.first(x), 0.2)
        x = torch.tanh(F.dropout(self.second(x), 0.1, self.training))
        return self.last(x)


class Branching(nn.Module):
    """Control flow on data: cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = Functional()
        self.fc = nn.Linear(2, 2)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.body(x)
        return self.act(self.fc(x)) if x.sum() > 0 else x


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + x)


def test_the_graph_decides_not_the_order_of_registration():
    report = initialize_(Functional(), generator=seeded())
    assert (report["first"].activation, report["second"].activation, report["last"].activation) == (
        "leaky_relu",
        "tanh",
        None,
    )
    assert report["first"].std == pytest.approx(math.sqrt(2 / (1 + 0.2**2) / 4))
    assert report["second"].std == pytest.approx(math.sqrt(1 / 8))
    assert "traced graph" in report["first"].found


def test_an_untraceable_model_is_traced_in_parts():
    report = initialize_(Branching(), generator=seeded())
    assert report["body.first"].activation == "leaky_relu"
    assert report["fc"].activation == "relu"
    assert report["fc"].found == "order of registration"


def test_through_normalisation_and_the_residual_sum():
    report = initialize_(Residual(), generator=seeded())
    assert [entry.activation for entry in report] == ["relu", "relu"]
    assert report["conv1"].fan_in == 36
    assert report["conv1"].std == pytest.approx(math.sqrt(2 / 36))
    assert report["conv1"].scheme == "he"


def test_the_layer_itself_may_hold_its_activation():
    class Dense(nn.Linear):
        def __init__(self, activation):
            super().__init__(6, 6)
            self.activation = activation

        def forward(self, x):
            return super().forward(x)

    report = initialize_(nn.Sequential(Dense("relu"), Dense(torch.tanh), Dense(nn.SELU()), Dense(None)))
    assert [entry.activation for entry in report] == ["relu", "tanh", "selu", None]
    assert report["0"].found == "attribute `activation` of the layer"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_of_pytorch():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, activation="gelu"), 2)
    report = initialize_(model, generator=seeded())
    # E[gelu(z)²] = 0.4252 for z ~ N(0, 1): by Gauss-Hermite quadrature of another implementation below.
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(80))
    moment = (F.gelu(nodes).square() * weights).sum().item() / math.sqrt(2 * math.pi)
    assert report["layers.1.linear1"].std == pytest.approx(math.sqrt(1 / (moment * 16)), rel=1e-6)
    assert report["layers.1.linear2"].activation is None
    projection = report["layers.0.self_attn.in_proj_weight"]
    assert (projection.fan_in, projection.fan_out) == (16, 16)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Conv1d(6, 8, 5), 30, 40),
        (nn.Conv2d(6, 8, 3, groups=2), 27, 36),
        (nn.Conv2d(6, 8, 4, stride=2), 96, 32),
        (nn.ConvTranspose2d(6, 8, 4, stride=2), 24, 128),
        (nn.Bilinear(5, 4, 3), 20, 12),
    ],
)
def test_fans(layer, fan_in, fan_out):
    entry = initialize_(nn.Sequential(layer))["0"]
    assert (entry.fan_in, entry.fan_out) == (fan_in, fan_out)


def test_a_transposed_convolution_keeps_a_unit_signal():
    """What the fan is for: with 1/fan_in the output has unit variance, which n_out · kernel would miss by 5.3 times."""
    layer = nn.ConvTranspose2d(64, 48, 4, stride=2, bias=False)
    initialize_(nn.Sequential(layer), "lecun", generator=seeded())
    x = torch.randn(8, 64, 16, 16, generator=seeded(8))
    assert layer(x)[:, :, 4:-4, 4:-4].var().item() == pytest.approx(1.0, rel=0.05)  # 48 maps: ±3 %


@pytest.mark.parametrize(
    ("scheme", "std"), [("small", 0.01), ("lecun", 0.1), ("he", math.sqrt(2) / 10), ("xavier", math.sqrt(2 / 400))]
)
def test_named_schemes_and_gain(scheme, std):
    net = nn.Sequential(nn.Linear(100, 300), nn.ReLU())
    assert initialize_(net, scheme, 1.5, generator=seeded())["0"].std == pytest.approx(1.5 * std)
    assert net[0].weight.std().item() == pytest.approx(1.5 * std, rel=0.02)  # 30,000 values: 0.4 %
    assert not net[0].bias.any()
    assert initialize_(net, "zeros")["0"].std == 0
    assert not net[0].weight.any()


def test_he_keeps_the_signal_of_a_deep_relu_net():
    """2/n at width 1024, depth 20: log ‖·‖² drifts by N(−β/2, β), β = 5·20/1024 = 0.098; 4 standard deviations."""
    net = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(1024, 1024), nn.ReLU())])
    initialize_(net, generator=seeded())
    x = torch.randn(16, 1024, generator=seeded(8))  # another seed: else x would be the first rows of W
    with torch.no_grad():
        ratio = net(x).square().mean() / x.square().mean()
    assert abs(math.log(ratio) + 0.049) < 4 * math.sqrt(0.098)


def test_what_is_left_alone_is_left_alone_and_listed():
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    net = nn.Sequential(
        nn.Embedding(5, 4),
        frozen,
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.GRU(4, 4),
        nn.Linear(4, 4),
    )
    net[2].bias.requires_grad_(False)
    before = {name: p.clone() for name, p in net.named_parameters()}
    report = initialize_(net)
    assert [entry.name for entry in report] == ["4.weight"]
    reasons = {entry.name: entry.found for entry in report.untouched}
    assert reasons["1.weight"] == "frozen"
    assert "embedding" in reasons["0.weight"]
    assert "recurrent" in reasons["3.weight_ih_l0"]
    for name, p in net.named_parameters():
        if not name.startswith(("4.", "1.bias")):
            assert torch.equal(p, before[name]), name


def test_a_shared_weight_is_drawn_once():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    assert len(initialize_(nn.Sequential(first, nn.ReLU(), second))) == 1


def test_tracing_leaves_no_stand_in_and_no_random_state_behind():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.seen, self.calls = nn.Linear(3, 3), None, 0

        def forward(self, x):
            self.calls += 1
            self.seen = x + torch.rand(1)
            return self.fc(self.seen).relu()

    model, before = Remembers(), torch.get_rng_state()
    assert initialize_(model, generator=seeded())["fc"].activation == "relu"
    assert (model.seen, model.calls) == (None, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_prints_as_a_table():
    text = str(initialize_(Functional()))
    for word in ("first.weight", "leaky_relu", "he, slope 0.2", "function call in the traced graph", "0.693"):
        assert word in text


def test_errors_by_their_wording():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got a tensor of shape \(2, 2\)"):
        initialize_(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"scheme must be one of 'auto', 'zeros', .* got 'kaiming'"):
        initialize_(nn.Linear(2, 2), "kaiming")
    with pytest.raises(ValueError, match=r"gain must lie in"):
        initialize_(nn.Linear(2, 2), gain=math.inf)
    with pytest.raises(ValueError, match=r"got weight of a lazy module; run one batch through the model first"):
        initialize_(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"got weight on the meta device; .*to_empty"):
        initialize_(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"must hold a weight to initialise, got ReLU with 0 parameters"):
        initialize_(nn.ReLU())
