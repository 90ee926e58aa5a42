"""The fills against the notes' formulas; a standard deviation of n values is known to about 1/√(2n) of itself."""

import math

import pytest
import torch

from torchnotes import init

N_OUT, N_IN = 300, 1000
# 300,000 values: the sample's standard deviation has a relative error of 1/√600,000 = 0.13 %; 0.6 % is 4.6 of those.
REL = 0.006


@pytest.mark.parametrize(
    ("fill", "std"),
    [
        (init.small_normal_, 0.01),
        (init.lecun_normal_, math.sqrt(1 / N_IN)),
        (init.he_normal_, math.sqrt(2 / N_IN)),
        (init.xavier_normal_, math.sqrt(2 / (N_IN + N_OUT))),
    ],
)
@pytest.mark.parametrize("gain", [1.0, 1.7])
def test_standard_deviation_is_the_notes_formula(fill, std, gain):
    weight = torch.empty(N_OUT, N_IN)
    assert fill(weight, gain=gain, generator=torch.Generator().manual_seed(1)) is weight
    assert weight.std().item() == pytest.approx(gain * std, rel=REL)
    assert abs(weight.mean().item()) < 5 * gain * std / math.sqrt(weight.numel())


def test_printed_variant_of_the_tanh_formula_fails_its_own_claim():
    """√√(1/n) (G2) does not keep the scale of the signal; √(1/n) does (n = 1000: 31.6 times the variance)."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, N_IN, generator=generator)
    right = init.lecun_normal_(torch.empty(N_OUT, N_IN), generator=generator)
    printed = torch.randn(N_OUT, N_IN, generator=generator) * math.sqrt(math.sqrt(1 / N_IN))
    assert (x @ right.T).var().item() == pytest.approx(1.0, rel=0.02)
    assert (x @ printed.T).var().item() == pytest.approx(math.sqrt(N_IN), rel=0.02)


def test_zeros_keep_hidden_units_identical_for_ever():
    """B1: the symmetry is not broken by training; small random weights break it."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randn(64, 1)

    def spread_after_training(fill):
        net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 1))
        for layer in (net[0], net[2]):
            fill(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
        rows = net[0].weight.detach()
        assert rows.abs().max() > 0 or fill is init.zeros_
        return (rows - rows[0]).abs().max().item()

    # Rows of one matrix product may be summed in different orders: float32 rounding, 1e-7, is all they may differ by.
    assert spread_after_training(init.zeros_) < 1e-6
    assert spread_after_training(init.small_normal_) > 0.01


def test_a_generator_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first = init.he_normal_(torch.empty(4, 4), generator=torch.Generator().manual_seed(3))
    again = init.he_normal_(torch.empty(4, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)


def test_a_convolution_sums_over_its_kernel():
    weight = init.lecun_normal_(torch.empty(200, 50, 3, 3), generator=torch.Generator().manual_seed(4))
    assert weight.std().item() == pytest.approx(math.sqrt(1 / 450), rel=0.012)  # 90,000 values


def test_errors_by_their_wording():
    with pytest.raises(ValueError, match=r"at least 2 dimensions .* got shape \(3,\); a bias starts at zero"):
        init.he_normal_(torch.empty(3))
    with pytest.raises(TypeError, match=r"floating-point tensor, got dtype int64"):
        init.zeros_(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gain must lie in \[0, inf\), got -1; it multiplies"):
        init.lecun_normal_(torch.empty(2, 2), gain=-1)
    with pytest.raises(ValueError, match=r"scale must lie in \[0, inf\)"):
        init.small_normal_(torch.empty(2, 2), scale=math.nan)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got int 0"):
        init.xavier_normal_(torch.empty(2, 2), generator=0)
    with pytest.raises(ValueError, match=r"uninitialised parameter of a lazy module; run one batch"):
        init.he_normal_(torch.nn.LazyLinear(3).weight)
