"""l2_groups: weights decay, biases do not."""

import pytest
import torch
from torch import nn

from torchnotes.optim import GradientDescent, l2_groups


def test_only_weights_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    frozen = model[3].weight.requires_grad_(False)
    decayed, spared = l2_groups(model, 0.5)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert {id(p) for p in spared["params"]} == {
        id(model[0].bias),
        id(model[1].weight),
        id(model[1].bias),
        id(model[3].bias),
    }
    assert all(p is not frozen for group in (decayed, spared) for p in group["params"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    GradientDescent(l2_groups(model, 0.5), lr=0.1).step()
    for name, p in model.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.data, before[name] * factor, rtol=1e-6, atol=0)


def test_errors_say_what_must_hold_and_what_came():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        l2_groups([torch.zeros(1)], 0.1)
    with pytest.raises(ValueError, match=r"weight_decay must lie in \[0, inf\), got -0\.1"):
        l2_groups(nn.Linear(1, 1), -0.1)
