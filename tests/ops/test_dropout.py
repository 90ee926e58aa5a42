"""The law of dropout, and its mask in every derivative. Every statistic has a fixed seed and a bound of 5 sigma."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.ops._table import seeded
from torchnotes.ops import dropout
from torchnotes.ops.kernels import random_mask

KEEP = [0.9, 0.8, 0.7, 0.5, 0.3]
SIZE = 1_000_000


def mask_of(keep_prob: float, shape: tuple[int, ...] = (SIZE,), seed: int = 0) -> torch.Tensor:
    return dropout(torch.ones(shape, dtype=torch.float64), keep_prob=keep_prob, generator=seeded(seed)) != 0


@pytest.mark.parametrize("keep_prob", KEEP)
def test_mean_and_variance(keep_prob: float):
    y = dropout(torch.full((SIZE,), 3.0, dtype=torch.float64), keep_prob=keep_prob, generator=seeded(0))
    sigma = 3 * ((1 - keep_prob) / keep_prob) ** 0.5
    assert abs(y.mean().item() - 3) < 5 * sigma / SIZE**0.5
    # The variance of a two-valued variable: its own sampling error is at most 9 (1-p)/p · √(kurtosis / SIZE).
    values = torch.tensor([0.0, 3 / keep_prob], dtype=torch.float64)
    weights = torch.tensor([1 - keep_prob, keep_prob], dtype=torch.float64)
    fourth = (weights * (values - 3) ** 4).sum().item()
    assert abs(y.var().item() - sigma**2) < 5 * ((fourth - sigma**4) / SIZE) ** 0.5 + 1e-4  # p is rounded to 1/65536


@pytest.mark.parametrize("keep_prob", [*KEEP, 0.123456, 1e-9, 1 - 1e-9])
def test_the_scale_is_the_inverse_of_the_realised_probability(keep_prob: float):
    # E[y] = x exactly: the number of lane values that mean "keep", over 65536, times the scale, is 1.
    count = random_mask.realised_count(keep_prob)
    assert 1 <= count <= 65535
    assert abs(count / 65536 - keep_prob) <= 1 / 65536
    lanes = torch.arange(65536, dtype=torch.int32).to(torch.int16)  # every value once
    assert int((lanes < count - 32768).sum()) == count
    y = dropout(torch.ones(4096, dtype=torch.float64), keep_prob=keep_prob, generator=seeded())
    assert set(y.unique().tolist()) <= {0.0, 65536 / count}


def test_the_notes_layer_of_fifty_units():
    # "50 units, keep_prob 0.8: 10 zeroed on average"; over 20,000 samples the mean's sigma is √(50·0.8·0.2/20,000).
    zeroed = (~mask_of(0.8, (20_000, 50))).sum(1).double()
    assert abs(zeroed.mean().item() - 10) < 5 * (8 / 20_000) ** 0.5
    assert abs(zeroed.var().item() - 8) < 5 * 8 * (2 / 20_000) ** 0.5 * 1.1


@pytest.mark.parametrize("keep_prob", KEEP)
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 64])
def test_neighbours_are_independent(keep_prob: float, lag: int):
    # Four lanes share a word, so lags 1 to 3 look within one and lags 4 and 8 at the same lane of the next.
    m = mask_of(keep_prob).double()
    m = (m - m.mean()) / m.std()
    assert abs((m[lag:] * m[:-lag]).mean().item()) < 5 / SIZE**0.5


@pytest.mark.parametrize("keep_prob", KEEP)
@pytest.mark.parametrize("size", [200_000, SIZE])
def test_every_lane_keeps_the_same_share(keep_prob: float, size: int):
    # A draw whose sign bit is constant gives one lane of four another law.
    shares = mask_of(keep_prob, (size,)).view(-1, 4).double().mean(0)
    sigma = (keep_prob * (1 - keep_prob) / (size / 4)) ** 0.5
    assert ((shares - keep_prob).abs() < 5 * sigma + 1 / 65536).all()


def test_samples_and_passes_are_independent():
    generator = seeded(1)
    x = torch.ones(1000, 1000)
    first, second = (dropout(x, keep_prob=0.5, generator=generator) != 0 for _ in range(2))
    assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / 1000
    assert abs((first[0] == first[1]).double().mean().item() - 0.5) < 5 * 0.5 / 1000**0.5


def test_the_mask_depends_on_the_generator_and_the_shape_alone():
    base = torch.randn(6, 8, generator=seeded())
    expected = dropout(base, keep_prob=0.5, generator=seeded(3))
    for x in (base.T.contiguous().T, base.repeat(1, 2)[:, :8], base.double().float()):
        assert torch.equal(dropout(x, keep_prob=0.5, generator=seeded(3)), expected)
    assert torch.equal(dropout(base, keep_prob=0.5, generator=seeded(3)), expected)
    assert not torch.equal(dropout(base, keep_prob=0.5, generator=seeded(4)), expected)
    assert torch.equal(dropout(base.bfloat16(), keep_prob=0.5, generator=seeded(3)) != 0, expected != 0)
    large = torch.randn(2**10, 2**10, generator=seeded())  # the block-wise path against the strided one
    assert torch.equal(
        dropout(large, keep_prob=0.5, generator=seeded(3)),
        dropout(large.T.contiguous().T, keep_prob=0.5, generator=seeded(3)),
    )


def test_the_global_generator_is_used_and_only_then():
    torch.manual_seed(0)
    first = dropout(torch.ones(100), keep_prob=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(100), keep_prob=0.5), first)
    state = torch.get_rng_state()
    dropout(torch.ones(100), keep_prob=0.5, generator=seeded())
    dropout(torch.ones(100), keep_prob=1.0)
    dropout(torch.ones(100), keep_prob=0.5, training=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_identity_at_no_cost():
    x = torch.randn(3, requires_grad=True)
    assert dropout(x, keep_prob=1.0) is x
    assert dropout(x, keep_prob=0.5, training=False) is x


@pytest.mark.parametrize("size", [7, 2**20 + 3])
def test_one_mask_in_forward_backward_second_backward_and_forward_mode(size: int):
    x = torch.ones(size, dtype=torch.float64, requires_grad=True)
    v = torch.ones(size, dtype=torch.float64, requires_grad=True)

    def f(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, keep_prob=0.5, generator=seeded())

    y = f(x)
    (gradient,) = torch.autograd.grad(y, x, v, create_graph=True)
    (second,) = torch.autograd.grad(gradient, v, torch.ones_like(v))
    _, tangent = torch.func.jvp(f, (x.detach(),), (torch.ones(size, dtype=torch.float64),))
    for other in (gradient, second, tangent):
        assert torch.equal(other, y)


@pytest.mark.parametrize("large", [False, True])
def test_vmap_draws_for_each_sample_or_once(large: bool):
    x = torch.ones(3, 2**19) if large else torch.ones(64, 64)
    for randomness, same in (("different", False), ("same", True)):
        y = torch.vmap(lambda row: dropout(row, keep_prob=0.5), randomness=randomness)(x)
        assert bool((y == y[0]).all()) == same


LARGE = 2**18 + 5  # drawn by another generator than the smaller ones, from a seed


def drawn_twice(x: torch.Tensor) -> torch.Tensor:
    """Two masks for the same elements, of which a compiler must not make one."""
    return dropout(x, keep_prob=0.7) + 10 * dropout(x, keep_prob=0.7)


def value_and_gradient(f: Callable[[torch.Tensor], torch.Tensor], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.linspace(1, 2, size).requires_grad_()
    y = f(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize("size", [35, 1000, LARGE])
def test_compiled_draws_what_eager_draws(size: int):
    torch._dynamo.reset()
    compiled = torch.compile(drawn_twice, fullgraph=True, backend="aot_eager")
    assert_close(value_and_gradient(compiled, size), value_and_gradient(drawn_twice, size), rtol=0, atol=0)
    assert value_and_gradient(drawn_twice, size)[1].unique().numel() == 4  # neither, either or both are kept


@pytest.mark.skipif(
    " " in torch.__file__, reason="Inductor passes its linker torch's own path unquoted, spaces and all"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the import of Inductor gives one of torch's own
def test_compiled_by_inductor_draws_what_eager_draws():
    torch._dynamo.reset()

    def small_and_large(x: torch.Tensor) -> torch.Tensor:
        return drawn_twice(x) + drawn_twice(x[:1000]).sum() + drawn_twice(x[:35]).sum()

    compiled = torch.compile(small_and_large, fullgraph=True)
    for size in (LARGE, LARGE):  # a second pass draws afresh, and the compiled code again as eager does
        assert_close(value_and_gradient(compiled, size), value_and_gradient(small_and_large, size))


def test_compiled_and_mapped_it_draws_what_eager_draws():
    def one_row(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, keep_prob=0.5)

    for randomness in ("different", "same"):
        for size in (1000, LARGE):
            torch._dynamo.reset()
            mapped, x = torch.vmap(one_row, randomness=randomness), torch.ones(3, size)
            torch.manual_seed(0)
            expected = mapped(x)
            torch.manual_seed(0)
            assert torch.equal(torch.compile(mapped, fullgraph=True, backend="aot_eager")(x), expected)


def test_recomputed_in_a_checkpoint_it_draws_the_same_mask():
    def layer(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: dropout(x, keep_prob=0.5).sin(), x, use_reentrant=False)

    torch._dynamo.reset()
    for f in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        for size in (1000, LARGE):
            y, gradient = value_and_gradient(f, size)
            assert torch.equal(gradient != 0, y != 0)


@pytest.mark.parametrize("size", [35, 1000, LARGE])
def test_exported_in_training_it_draws_what_eager_draws(size: int):
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return drawn_twice(x)

    x = torch.ones(size)
    program = torch.export.export(Twice(), (x,)).module()
    assert_close(value_and_gradient(program, size), value_and_gradient(drawn_twice, size), rtol=0, atol=0)


def test_with_a_generator_it_is_left_to_eager_by_the_compiler():
    torch._dynamo.reset()
    x = torch.ones(1000)
    compiled = torch.compile(lambda x, g: dropout(x + 1, keep_prob=0.5, generator=g), backend="eager")
    assert torch.equal(compiled(x, seeded()), dropout(x + 1, keep_prob=0.5, generator=seeded()))


def test_the_opaque_op_is_one_by_pytorchs_rules():
    seed = torch.tensor([3, -4, 5])
    torch.library.opcheck(torch.ops.torchnotes.mask_of_seed.default, (seed, 1000, 0))
    assert torch.equal(torch.ops.torchnotes.mask_of_seed(seed, 1000, 0), random_mask._mask_of_seed(seed, 1000, 0))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_batch_of_seeds_gives_a_mask_of_each(axis: int):
    seeds = torch.randint(-(2**63), 2**63 - 1, (5, 3), generator=seeded())
    masks = torch.vmap(lambda seed: torch.ops.torchnotes.mask_of_seed(seed, 100, 0), in_dims=axis)(
        seeds.movedim(0, axis)
    )
    assert torch.equal(masks, torch.stack([random_mask._mask_of_seed(seed, 100, 0) for seed in seeds]))


def test_the_lanes_are_the_same_numbers_by_arithmetic():
    words = torch.randint(-(2**63), 2**63 - 1, (5,), generator=seeded())
    with torch.autograd.forward_ad.dual_level():  # no longer plain
        assert torch.equal(random_mask._lanes(words), words.view(torch.int16).long())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_once(dtype: torch.dtype):
    # 1/p itself, rounded to half precision before the product, would bias every value.
    x = torch.full((4096,), 1.2345).to(dtype)
    y = dropout(x, keep_prob=0.7, generator=seeded())
    scale = 65536 / random_mask.realised_count(0.7)
    assert set(y.unique().tolist()) == {0.0, (x[0].double() * scale).to(dtype).item()}


def test_a_dropped_nan_is_still_nan():
    y = dropout(torch.full((100,), torch.nan), keep_prob=0.5)
    assert y.isnan().all()


def test_bad_arguments_are_refused():
    x = torch.ones(3)
    for keep_prob in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"keep_prob must lie in \(0, 1\], got .*; it is the share kept, 1 - p of"):
            dropout(x, keep_prob=keep_prob)
    with pytest.raises(TypeError, match=r"keep_prob must be a number in \(0, 1\], got str '0\.5'"):
        dropout(x, keep_prob="0.5")
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int 3"):
        dropout(x, keep_prob=0.5, generator=3)
    with pytest.raises(ValueError, match=r"generator must live on the tensor's device meta, got one on cpu"):
        dropout(x.to("meta"), keep_prob=0.5, generator=seeded())
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        dropout(x, 0.5)


def sfc64(a: int, b: int, c: int, size: int) -> np.ndarray:
    """Words of Chris Doty-Humphrey's "small fast chaotic" generator, its counter from 1, the first twelve left out."""
    words, full = [], 2**64 - 1
    for counter in range(1, size + 13):
        word = (a + b + counter) & full
        a, b, c = b ^ (b >> 11), (c + (c << 3)) & full, (((c << 24) | (c >> 40)) + word) & full
        words.append(word)
    return np.array(words[12:], dtype=np.uint64)


def test_a_mask_is_the_lanes_of_the_generator_below_the_count():
    # Each of the 65536 values of a lane comes about four times, the threshold itself among them.
    words = sfc64(5, 2**64 - 7, 3, LARGE // 4 + 1)
    expected = torch.from_numpy(words.view(np.int16)[:LARGE].astype(np.int64)) < 1000
    seed = torch.tensor([5, -7, 3])
    assert torch.equal(random_mask._mask_of_seed(seed, LARGE, 1000), expected)
    assert torch.equal(random_mask._mask_of_seed(seed, 257, 1000), expected[:257])
    assert not random_mask._mask_of_seed(seed, 257, -(2**15)).any()


def test_elsewhere_than_on_a_cpu_a_mask_is_the_lanes_of_pytorchs_words():
    words = torch.randint(-(2**63), 2**63 - 1, (LARGE // 4 + 1,), generator=seeded())
    expected = torch.from_numpy(words.numpy().view(np.int16)[:LARGE].astype(np.int64)) < 1000
    assert torch.equal(random_mask._below(words, LARGE, 1000), expected)
    assert random_mask._lanes(words).dtype == torch.int16  # a view


def test_elsewhere_it_draws_a_word_for_four_elements(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    def below(words: torch.Tensor, size: int, threshold: int) -> torch.Tensor:
        drawn.append(len(words))
        return words.new_empty(size, dtype=torch.bool)

    monkeypatch.setattr(random_mask, "_below", below)
    for size in (2000, 2001, 2003):
        assert random_mask.keep_mask((size,), torch.device("meta"), 1000, None).shape == (size,)
    assert drawn == [500, 501, 501]


def test_every_bit_of_a_seed_is_drawn(monkeypatch: pytest.MonkeyPatch):
    # Each set in half of 400 draws, to within 5 sigma; the sign bit among them, which in the words that other devices
    # draw is that of one lane in four.
    seeds: list[torch.Tensor] = []
    whole = random_mask._mask_of_seed
    monkeypatch.setattr(random_mask, "_mask_of_seed", lambda seed, *given: (seeds.append(seed), whole(seed, *given))[1])
    generator = seeded()
    for _ in range(400):
        mask_drawn = random_mask.keep_mask((1025,), torch.device("cpu"), 32768, generator)
    assert mask_drawn.shape == (1025,)
    words = torch.stack(seeds)
    assert words.shape == (400, 3)
    bits = (words.unsqueeze(-1) >> torch.arange(64)) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 5 * 0.5 / 400**0.5).all()


def test_random_words_are_all_of_int64_but_its_largest_number():
    int64 = torch.iinfo(torch.int64)
    assert random_mask._WORDS == (int64.min, int64.max)  # the end of a range is not drawn


def test_a_seed_of_too_few_words_is_refused():
    with pytest.raises(ValueError, match="the seed must have 3 words, got 2"):
        random_mask._mask_of_seed(torch.tensor([5, -7]), 257, 1000)


def test_a_large_mask_lives_where_its_tensor_does():
    assert dropout(torch.empty(LARGE, device="meta"), keep_prob=0.5).device.type == "meta"
