"""InputNormalizer: the notes' claim, numerical stability, merging, casting, saving, folding, errors."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchnotes.data import InputNormalizer
from torchnotes.data import _moments as moments_module


def _table(m=500, n=4, seed=0, dtype=torch.float64):
    # Ranges like the notes' own: 1…1000 beside 0…1.
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1000.0, 1.0, 1e-6, 50.0], dtype=torch.float64)[:n]
    offset = torch.tensor([500.0, 0.5, 0.0, -3.0], dtype=torch.float64)[:n]
    return (torch.rand(m, n, generator=generator, dtype=torch.float64) * scale + offset).to(dtype)


def test_training_set_gets_zero_mean_and_unit_variance():
    x = _table()
    y = InputNormalizer(4).fit(x)(x)
    # float64 sums of 500 numbers near 1: round-off is some 1e-14
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_figures_are_the_training_sets_own():
    normalizer = InputNormalizer().fit(torch.tensor([[0.0], [2.0]]))
    # μ = 1, σ = 1 by 1/m; dividing by m − 1 would give √2
    assert normalizer.mean.item() == 1.0
    assert normalizer.std.item() == 1.0
    assert normalizer(torch.tensor([[5.0]])).item() == 4.0


def test_dividing_by_the_variance_fails_the_notes_claim():
    x = _table()
    normalizer = InputNormalizer().fit(x)
    printed = (x - normalizer.mean) / normalizer.var  # G1: leaves variance 1/σ²
    torch.testing.assert_close(printed.var(0, unbiased=False), 1 / normalizer.var)
    assert not torch.allclose(printed.var(0, unbiased=False), torch.ones(4, dtype=torch.float64), rtol=0.5)


def test_variance_without_centring_is_wrong_off_centre():
    x = _table()
    uncentred = x.square().mean(0)  # G14: Σx²/m is the variance only of zero-mean data
    assert not torch.allclose(uncentred, InputNormalizer().fit(x).var, rtol=0.1)
    centred = x - x.mean(0)
    torch.testing.assert_close(centred.square().mean(0), InputNormalizer().fit(centred).var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [7, 100, 1000])
def test_streaming_is_stable_for_mean_1e8_and_deviation_1(dtype, batch):
    generator = torch.Generator().manual_seed(1)
    x = (1e8 + torch.randn(1000, 3, generator=generator, dtype=torch.float64)).to(dtype)
    # float32 steps by 8 here: give it some spread that it can hold
    x[:2] = torch.tensor([1e8 - 64.0, 1e8 + 1000.0], dtype=dtype)[:, None]
    normalizer = InputNormalizer()
    for piece in x.split(batch):
        normalizer.partial_fit(piece)
    exact = x.numpy().astype(np.longdouble)  # 64-bit mantissa: an independent, more exact reference
    mean = exact.mean(0)
    var = ((exact - mean) ** 2).mean(0)
    # each piece's mean is rounded at 1e8, by 1.5e-8 at most, and so is what merging adds; E[x²] − E[x]² is off by 2
    np.testing.assert_allclose(normalizer.mean.numpy(), mean.astype(np.float64), rtol=1e-15)
    np.testing.assert_allclose(normalizer.var.numpy(), var.astype(np.float64), rtol=1e-9)
    # the difference x − μ must not be rounded to the 8 that float32 resolves at 1e8
    wanted = ((exact - mean) / np.sqrt(var)).astype(np.float64)
    rtol = 1e-6 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(normalizer(x).double().numpy(), wanted, rtol=rtol, atol=1e-8)


def test_naive_streaming_formula_would_fail_the_same_data():
    generator = torch.Generator().manual_seed(1)
    x = 1e8 + torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    naive = x.square().mean(0) - x.mean(0).square()
    assert not torch.allclose(naive, x.var(0, unbiased=False), rtol=0.1)


@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_any_partition_gives_the_same_figures(cuts, seed):
    x = _table(60, seed=seed)
    edges = [0, *sorted(cuts), 60]
    pieces = [x[a:b] for a, b in itertools.pairwise(edges) if b > a]
    streamed, merged = InputNormalizer(4), InputNormalizer(4)
    for piece in pieces:
        streamed.partial_fit(piece)
    for piece in reversed(pieces):  # merging does not depend on order
        merged.merge(InputNormalizer().fit(piece))
    whole = InputNormalizer().fit(x)
    for other in (streamed, merged):
        assert torch.equal(other.count, whole.count)
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(other.squares, whole.squares, rtol=1e-11, atol=0)


def test_large_data_is_read_in_pieces_with_the_same_result(monkeypatch):
    x = _table(1000)
    whole = InputNormalizer().fit(x)
    monkeypatch.setattr(moments_module, "CHUNK_ELEMENTS", 64)
    seen = []
    original = moments_module._moments_of_piece
    monkeypatch.setattr(moments_module, "_moments_of_piece", lambda p: seen.append(p.numel()) or original(p))
    pieces = InputNormalizer().fit(x)
    assert len(seen) == 63
    assert max(seen) == 64
    torch.testing.assert_close(pieces.squares, whole.squares, rtol=1e-12, atol=0)


def test_fit_reads_a_loader_of_pairs_and_forgets_what_was_before():
    x = _table()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=64)
    normalizer = InputNormalizer().fit(torch.ones(3, 4)).fit(loader)
    torch.testing.assert_close(normalizer.mean, x.mean(0))
    assert normalizer.count.tolist() == [500] * 4


def test_images_are_normalised_by_channel():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 5, 6, generator=generator) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    y = InputNormalizer(feature_dim=1).fit(x)(x)
    # float32 with 240 numbers a channel
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5, rtol=0)


def test_integer_images_become_the_default_dtype():
    x = torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8)
    y = InputNormalizer().fit(x)(x)
    assert y.dtype == torch.get_default_dtype()
    assert y.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e8 / 3, 1e300])
def test_constant_features_become_zero_and_are_named(value):
    x = torch.stack([torch.full((37,), value, dtype=torch.float64), torch.arange(37.0, dtype=torch.float64)], 1)
    normalizer = InputNormalizer()
    for piece in x.split(5):
        normalizer.partial_fit(piece)
    assert normalizer.constant_features == [0]
    assert normalizer.mean[0].item() == value
    assert normalizer.squares[0].item() == 0.0
    assert InputNormalizer().fit(x).squares[0].item() == 0.0  # in one piece 37 times the value has a rounded sum
    assert torch.equal(normalizer(x)[:, 0], torch.zeros(37, dtype=torch.float64))
    assert "1 constant, centred but not scaled: feature 0." in normalizer.report()


def test_round_off_is_not_a_signal_to_be_scaled_up():
    x = torch.full((10, 1), 0.3, dtype=torch.float64)
    x[::2] = 0.1 + 0.2  # one unit in the last place above 0.3
    normalizer = InputNormalizer().fit(x)
    assert normalizer.constant_features == [0]
    assert normalizer(x).abs().max() < 1e-15


def test_a_piece_without_finite_values_changes_nothing():
    normalizer = InputNormalizer(nonfinite_values="ignore").fit(torch.tensor([[1e300], [2e300]], dtype=torch.float64))
    squares, mean = normalizer.squares.clone(), normalizer.mean.clone()
    normalizer.partial_fit(torch.full((3, 1), math.nan, dtype=torch.float64))
    assert torch.equal(normalizer.mean, mean)
    assert torch.equal(normalizer.squares, squares)
    assert normalizer.nonfinite_features == {0: 3}


def test_nonfinite_values_are_refused_by_feature_and_the_old_figures_kept():
    normalizer = InputNormalizer().fit(_table())
    before = copy.deepcopy(normalizer.state_dict())
    bad = _table()
    bad[3, 1], bad[4, 1], bad[5, 2] = math.nan, math.inf, -math.inf
    with pytest.raises(ValueError, match=r"x must be finite, got 3 NaN or infinite values in features 1, 2; clean"):
        normalizer.fit(bad)
    with pytest.raises(ValueError, match="x must be finite"):
        normalizer.partial_fit([_table(), bad])
    for name, tensor in normalizer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nonfinite_values_left_out_are_counted():
    x = _table(50)
    bad = x.clone()
    bad[0, 0], bad[7, 0], bad[:, 2] = math.nan, math.inf, math.nan
    normalizer = InputNormalizer(nonfinite_values="ignore")
    for piece in bad.split(10):
        normalizer.partial_fit(piece)
    kept = torch.cat([x[1:7, 0], x[8:, 0]])
    torch.testing.assert_close(normalizer.mean[0], kept.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(normalizer.var[0], kept.var(unbiased=False), rtol=1e-12, atol=0)
    assert normalizer.nonfinite_features == {0: 2, 2: 50}
    assert "52 NaN or infinite values left out: features 0, 2." in normalizer.report()
    y = normalizer(bad)
    assert torch.equal(y.isfinite(), bad.isfinite())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inverse_returns_the_input(dtype):
    x = _table(dtype=dtype)
    normalizer = InputNormalizer().fit(x)
    # y has |y| ≤ 2, so its rounding costs 2 ε σ; x itself is stored to ε |x|
    eps = torch.finfo(dtype).eps
    back = normalizer.inverse(normalizer(x))
    assert back.dtype == dtype
    bound = 4 * eps * (normalizer.scale + x.double().abs())
    assert ((back.double() - x.double()).abs() <= bound).all()


def test_casting_the_model_leaves_the_statistics_in_float64():
    generator = torch.Generator().manual_seed(0)
    x = 1e8 + 100 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    model = nn.Sequential(InputNormalizer().fit(x), nn.Linear(2, 1).double())
    expected = model[0](x)
    for cast in (nn.Module.half, nn.Module.float, nn.Module.bfloat16, nn.Module.double):
        cast(model)
        assert model[0].mean.dtype == torch.float64
        assert torch.equal(model[0](x), expected)


def test_saved_and_loaded_with_the_model(tmp_path):
    x = _table(dtype=torch.float32)
    model = nn.Sequential(InputNormalizer().fit(x), nn.Linear(4, 2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    for fresh in (InputNormalizer(), InputNormalizer(4)):
        twin = nn.Sequential(fresh, nn.Linear(4, 2))
        twin.load_state_dict(state, strict=True)
        assert torch.equal(twin(x), model(x))
    # an unfitted state stays unfitted
    unfitted = InputNormalizer(4)
    unfitted.load_state_dict(InputNormalizer(4).state_dict())
    with pytest.raises(RuntimeError, match="must be fitted"):
        unfitted(x)


def test_streaming_resumes_from_a_loaded_state():
    x = _table()
    first = InputNormalizer().fit(x[:200])
    resumed = InputNormalizer()
    resumed.load_state_dict(first.state_dict())
    resumed.partial_fit(x[200:])
    assert torch.equal(resumed.squares, first.partial_fit(x[200:]).squares)


def test_refuses_to_be_used_before_fit():
    for use in (
        lambda n: n(torch.zeros(1, 4)),
        lambda n: n.inverse(torch.zeros(1, 4)),
        lambda n: n.fold_into_(nn.Linear(4, 1)),
        lambda n: n.std,
        lambda n: n.report(),
        lambda n: InputNormalizer().merge(n),
    ):
        with pytest.raises(RuntimeError, match=r"must be fitted before it is used, and it is not; call fit\(x_train\)"):
            use(InputNormalizer(4))


def test_differentiable_in_the_input():
    x = _table(6).requires_grad_()
    normalizer = InputNormalizer().fit(_table())
    assert torch.autograd.gradcheck(normalizer, x)
    assert torch.autograd.gradcheck(normalizer.inverse, normalizer(x).detach().requires_grad_())


def test_works_under_vmap_and_leaves_the_input_alone():
    x = _table(dtype=torch.float32)
    before = x.clone()
    normalizer = InputNormalizer().fit(x)
    # 1 ulp: batched kernels may contract a multiplication differently
    torch.testing.assert_close(torch.func.vmap(normalizer)(x), normalizer(x), rtol=2e-7, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_layer_takes_raw_inputs(bias, dtype):
    x = torch.cat([_table(dtype=dtype), torch.full((500, 1), 3.0, dtype=dtype)], 1)  # one constant feature
    torch.manual_seed(0)
    linear = nn.Linear(5, 3, bias=bias, dtype=dtype)
    normalizer = InputNormalizer().fit(x)
    expected = linear(normalizer(x)).detach()
    weight = linear.weight
    assert normalizer.fold_into_(linear) is linear
    assert linear.weight is weight  # the optimiser still holds it
    # means up to 35 deviations off centre: that many ulps of the terms that cancel
    tol = 500 * torch.finfo(dtype).eps
    torch.testing.assert_close(linear(x).detach(), expected, rtol=0, atol=tol)


def test_folding_that_would_lose_the_signal_is_refused():
    generator = torch.Generator().manual_seed(0)
    x = 1e6 + torch.randn(100, 2, generator=generator, dtype=torch.float64)
    normalizer = InputNormalizer().fit(x)
    with pytest.raises(ValueError, match=r"small beside the deviations .* into float32, got round-off of 1\.\de-01"):
        normalizer.fold_into_(nn.Linear(2, 1))
    normalizer.fold_into_(nn.Linear(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Embedding(3, 4), "linear"])
def test_fold_refuses_other_layers(layer):
    with pytest.raises(TypeError, match="linear must be a layer with parameters weight"):
        InputNormalizer().fit(_table()).fold_into_(layer)


@pytest.mark.parametrize(
    ("call", "error", "wording"),
    [
        (lambda: InputNormalizer(0), ValueError, "num_features must be an integer of at least 1, got 0"),
        (lambda: InputNormalizer(nonfinite_values="drop"), ValueError, "nonfinite_values must be 'raise' or 'ignore'"),
        (lambda: InputNormalizer().fit(np.zeros((2, 2))[0, 0]), TypeError, "x must be a tensor or an iterable"),
        (lambda: InputNormalizer().fit(torch.zeros(3)), ValueError, "must have a sample axis and a feature axis"),
        (lambda: InputNormalizer().fit(torch.zeros(0, 3)), ValueError, "must hold at least one sample"),
        (lambda: InputNormalizer().fit([]), ValueError, "must hold at least one batch, got an empty iterable"),
        (lambda: InputNormalizer().fit([{"x": 1}]), TypeError, "a batch must be a tensor or a sequence"),
        (
            lambda: InputNormalizer().fit(np.zeros((2, 2))),
            TypeError,
            r"got ndarray .*; convert an array .* torch\.as_tensor",
        ),
        (lambda: InputNormalizer().fit(torch.zeros(2, 2, dtype=torch.bool)), TypeError, "real numbers, got dtype bool"),
        (lambda: InputNormalizer().fit(torch.zeros(2, 2, dtype=torch.cfloat)), TypeError, "got dtype complex64"),
        (lambda: InputNormalizer(3).fit(torch.zeros(2, 2)), ValueError, "x must have 3 features on axis -1, got 2"),
        (
            lambda: InputNormalizer().fit([torch.zeros(2, 2), torch.zeros(2, 3)]),
            ValueError,
            "must have 2 features on axis -1, got 3",
        ),
        (lambda: InputNormalizer().fit(_table())(torch.zeros(2, 5)), ValueError, "must have 4 features on axis -1"),
        (lambda: InputNormalizer(feature_dim=2).fit(_table()), ValueError, "must have an axis 2 for the features"),
        (lambda: InputNormalizer().fit(_table())([1.0]), TypeError, "x must be a torch.Tensor"),
        (lambda: InputNormalizer().merge(_table()), TypeError, "other must be an InputNormalizer"),
        (lambda: InputNormalizer().fit(_table()).all_merge(), RuntimeError, "all_merge needs torch.distributed"),
        (
            lambda: InputNormalizer(feature_dim=0).fit(_table(4)).fold_into_(nn.Linear(4, 1)),
            ValueError,
            "feature_dim must be -1 to fold",
        ),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, error, wording):
    with pytest.raises(error, match=wording):
        call()


def _merge_on_rank(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    share = _table()[:180] if rank == 0 else _table()[180:]
    both = InputNormalizer().fit(share).all_merge()
    one = InputNormalizer()
    if rank == 0:
        one.fit(_table())
    one.all_merge()  # rank 1 has seen nothing
    try:
        InputNormalizer().fit(torch.zeros(2, 2 + rank)).all_merge()
        message = ""
    except ValueError as error:
        message = str(error)
    torch.save((both.state_dict(), one.state_dict(), message), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def _merge_on_three(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    x = _shares()
    figures = [InputNormalizer(nonfinite_values="ignore").fit(x[rank]).all_merge().state_dict()]
    late = InputNormalizer(nonfinite_values="ignore")
    if rank != 1:
        late.fit(x[rank])
    figures.append(late.all_merge().state_dict())  # the rank in the middle has seen nothing
    pair = dist.new_group([0, 2])
    if rank != 1:
        figures.append(InputNormalizer(nonfinite_values="ignore").fit(x[rank]).all_merge(pair).state_dict())
    try:
        InputNormalizer(nonfinite_values="ignore").fit(torch.zeros(2, 2 + rank % 2)).all_merge()
        message = ""
    except ValueError as error:
        message = str(error)
    torch.save((figures, message), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def _shares():
    """Rows of three ranks, unlike in number and in mean; one feature is constant on each, one has a NaN on one."""
    x = [_table()[:7] + 1e4, _table()[7:200], _table()[200:] - 3.0]
    for rank, share in enumerate(x):
        share[:, 1] = float(rank)
    x[2][4, 3] = torch.nan
    return x


def test_three_ranks_end_with_the_figures_of_one_process(tmp_path):
    torch.multiprocessing.spawn(_merge_on_three, args=(tmp_path / "store", tmp_path), nprocs=3)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    x = _shares()
    for k, of in enumerate(((0, 1, 2), (0, 2), (0, 2))):
        whole = InputNormalizer(nonfinite_values="ignore").fit(torch.cat([x[rank] for rank in of]))
        found = [figures[k] for figures, _ in ranks if k < len(figures)]
        assert len(found) == (2 if k == 2 else 3)
        for name, tensor in whole.state_dict().items():
            assert all(torch.equal(other[name], found[0][name]) for other in found)  # bit for bit on every rank
            torch.testing.assert_close(found[0][name], tensor, rtol=1e-12, atol=1e-15)
    assert all("every rank must hold the same number of features, got [2, 3]" in message for _, message in ranks)


def test_ranks_end_with_the_same_figures(tmp_path):
    torch.multiprocessing.spawn(_merge_on_rank, args=(tmp_path / "store", tmp_path), nprocs=2)
    (both, one, message), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = InputNormalizer().fit(_table()).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(both[name], other[0][name])  # bit for bit on every rank
        torch.testing.assert_close(both[name], tensor, rtol=1e-12, atol=1e-15)
        assert torch.equal(one[name], tensor)
        assert torch.equal(other[1][name], tensor)
    assert "every rank must hold the same number of features, got [2, 3]" in message
    assert other[2] == message
