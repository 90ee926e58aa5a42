"""The module at fault is named, also where its gradient has all but vanished."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import FaultyLinear, data, faulty_net, net, seeded
from torchnotes.gradcheck import check_gradients


def doubled_input(gx, gw, gb, w):
    return 2 * gx, gw, gb


def transposed(gx, gw, gb, w):
    return gx, gw.T, gb


def test_a_wrong_input_gradient_spoils_the_layers_below_but_its_own_module_is_blamed():
    x, y = data()
    report = check_gradients(faulty_net(doubled_input), x, y, loss=F.cross_entropy)
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == ["0.weight", "0.bias"]
    assert report.culprits == ("2",)
    assert "the fault is inside 2: its own gradient is wrong for input[0]" in " ".join(report.sentences())


def test_the_tensor_of_the_faulty_module_is_named():
    x, y = data()
    report = check_gradients(faulty_net(transposed), x, y, loss=F.cross_entropy)
    assert report.culprits == ("2",)
    detail = next(f.detail for f in report.modules if f.name == "2")
    assert "weight (" in detail
    assert "input[0]" not in detail


class Wrapper(nn.Module):
    """A module whose own forward, between right children, is wrong."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return -g

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6).double()

    def forward(self, x):
        return self.Sign.apply(self.inner(x))


def test_the_innermost_wrong_module_is_blamed_not_its_ancestors():
    x, y = data()
    model = seeded(nn.Sequential(nn.Sequential(Wrapper(), nn.Tanh()), nn.Linear(6, 3).double()))
    report = check_gradients(model, x, y, loss=F.cross_entropy)
    assert report.culprits == ("0.0",)


def test_a_fault_in_the_models_own_forward():
    class Net(Wrapper):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3).double()

        def forward(self, x):
            return self.out(super().forward(x))

    x, y = data()
    assert check_gradients(seeded(Net()), x, y, loss=F.cross_entropy).culprits == ("the model's own forward",)


def test_a_fault_is_seen_where_its_gradient_has_vanished():
    """Sixteen sigmoid layers of small weights: the gradient at the bottom lies far below any J's round-off."""
    layers = [FaultyLinear(6, 6, transposed), nn.Sigmoid()]
    for _ in range(16):
        layers += [nn.Linear(6, 6).double(), nn.Sigmoid()]
    model = seeded(nn.Sequential(*layers, nn.Linear(6, 3).double()), scale=0.05)
    x, y = data()
    report = check_gradients(model, x, y, loss=F.cross_entropy, parameters=["0"])
    assert report.by_parameter["0.weight"].rms < 1e-20
    assert report.by_parameter["0.weight"].verdict == "correct"  # nothing to be seen in J
    assert report.verdict == "wrong"
    assert report.culprits == ("0",)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus])
def test_right_modules_are_not_blamed(activation):
    x, y = data()
    report = check_gradients(net(activation), x, y, loss=nn.CrossEntropyLoss())
    assert report.culprits == ()
    assert {f.verdict for f in report.modules} == {"correct"}


def test_other_kinds_of_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 8, generator=generator, dtype=torch.float64)
    conv = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    assert check_gradients(seeded(conv.double()), x, loss=lambda o: o.square().mean()).verdict == "correct"
    attention = nn.TransformerEncoderLayer(8, 2, 4, dropout=0.1, batch_first=True).double()
    report = check_gradients(seeded(attention), x, loss=lambda o: o.square().mean(), parameters=["linear1", "norm1"])
    assert report.verdict == "correct", str(report)


def test_integer_inputs_are_constants():
    model = seeded(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)).double())
    tokens = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0))
    report = check_gradients(model, tokens, torch.tensor([0, 1, 2, 0]), loss=F.cross_entropy)
    assert report.verdict == "correct"
