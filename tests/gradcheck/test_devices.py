"""Checks run where the model is: nothing is made on the CPU by mistake, and what is read back is no single entry."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._elsewhere import ELSEWHERE, Device, There, moved
from tests.gradcheck._nets import data, faulty_net, net, seeded
from torchnotes.gradcheck import check_function, check_gradients


@pytest.fixture
def elsewhere(monkeypatch):
    """The device; with the two ways to name it that PyTorch keeps from a mode for the device whose name is borrowed."""
    tensor, generator = torch.tensor, torch.Generator

    def placed(values, *, dtype=None, device=None):
        made = tensor(values, dtype=dtype)
        return made if device is None else made.to(device)

    class OnTheCPU(generator):
        def __new__(cls, device="cpu"):
            return super().__new__(cls)

    monkeypatch.setattr(torch, "tensor", placed)
    monkeypatch.setattr(torch, "Generator", OnTheCPU)
    with Device() as device:
        Device.reads = 0
        yield device


def test_the_device_refuses_what_a_gpu_would(elsewhere):
    x = torch.ones(3, 2).to(ELSEWHERE)
    assert isinstance(x * 2 + torch.zeros(2, device=x.device), There)
    with pytest.raises(RuntimeError, match=r"add: tensors on two devices, of shapes \[\(3, 2\)\] there and \[\(2,\)\]"):
        x + torch.zeros(2)
    assert (float(x.sum()), Device.reads) == (6.0, 1)


def penalty(model):
    return 0.1 * model[0].weight.square().sum()


def image_net():
    layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    return seeded(nn.Sequential(*layers).double())


def four_times_the_bias(gx, gw, gb, w):
    return gx, gw, 4 * gb


@pytest.mark.parametrize(
    ("model", "shape", "options", "verdict", "method"),
    [
        (lambda: net(sizes=(20, 6, 3)), (8, 20), {"penalty": penalty}, "correct", "exact (chain)"),
        (lambda: net(nn.ReLU, (20, 6, 3)), (8, 20), {}, "correct", "exact (chain)"),
        (image_net, (3, 1, 6, 6), {}, "correct", "exact (vmap)"),
        (lambda: faulty_net(four_times_the_bias), (8, 6), {}, "wrong", "exact (chain)"),
        (lambda: faulty_net(four_times_the_bias), (8, 6), {"method": "projected"}, "wrong", "projected"),
    ],
    ids=["penalty", "relu", "vmap", "wrong", "projected"],
)
def test_a_model_is_checked_where_it_is(elsewhere, model, shape, options, verdict, method):
    model = moved(model())
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.to(ELSEWHERE)
    y = data(m=shape[0])[1].to(ELSEWHERE)
    report = check_gradients(model, x, y, loss=F.cross_entropy, **options)
    assert report.verdict == verdict, str(report)
    assert report.method.startswith(method)
    if verdict == "correct":  # of two thousand evaluations and more than a hundred contracts none is read by itself
        assert Device.reads < 600 * len(list(model.parameters()))


def test_a_function_is_checked_where_its_inputs_are(elsewhere):
    inputs = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)).double().to(ELSEWHERE) for k in range(2)]
    report = check_function(lambda a, b: torch.sigmoid(a) * b, *inputs)
    assert report.verdict == "correct", str(report)
    assert "vmap" in report.method
