"""Single functions: right ones pass whatever their kinks, scales and arguments; bad input is refused in words."""

import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from tests.gradcheck._wrong import randn
from torchnotes.gradcheck import check_function


@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (torch.sigmoid, (randn(7),)),
        (lambda x: x, (randn(3),)),
        (lambda x: x.sum(), (randn(2, 3),)),
        (F.linear, (randn(5, 3), randn(4, 3, seed=1), randn(4, seed=2))),
        (F.softmax, (randn(3, 4), 1)),
        (torch.linalg.svdvals, (randn(4, 3),)),
        (lambda x: (x.sin(), [x.cos()], {"k": x.exp()}), (randn(3),)),
        (torch.fft.rfft, (randn(6),)),
        (lambda x: x**3, (torch.tensor(1.0),)),
        (lambda a, b: torch.cat([a, b]).exp(), (torch.empty(0, 3), randn(2, 3))),
        (lambda x: F.layer_norm(x, (1,)), (randn(4, 1),)),  # the gradient is 0: round-off of terms near 300
        (torch.matrix_exp, (randn(3, 3),)),
        (torch.nansum, (torch.tensor([1.0, math.nan, -2.0]),)),
        (torch.gather, (randn(3, 4), 1, torch.tensor([[0, 1], [2, 2], [3, 0]]))),
    ],
)
def test_right_functions_are_correct(fn, inputs):
    report = check_function(fn, *inputs)
    assert report.verdict == "correct", str(report)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_scale_of_the_input_does_not_matter(scale):
    """ε = 1e-7 is a tenth of an input of 1e-6: the step must follow the input, and the curvature be seen."""
    x = scale * (1 + randn(5).abs())
    assert check_function(lambda t: (t / scale).tanh().sum() + (scale / t).sum(), x).verdict == "correct"


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_output_does_not_matter(scale):
    assert check_function(lambda t: scale * t.sin(), randn(5)).verdict == "correct"


@pytest.mark.parametrize(
    "fn",
    [
        torch.relu,
        torch.abs,
        lambda x: x.clamp(-0.5, 0.5),
        lambda x: x.amax(),
        lambda x: x.sort().values * torch.arange(1.0, 6.0, dtype=torch.float64),
        lambda x: F.leaky_relu(x, 0.01),
    ],
    ids=["relu", "abs", "clamp", "amax", "sort", "leaky_relu"],
)
def test_kinks_are_not_bugs(fn):
    """Zeros, bounds and ties exactly at a kink, and one just beside it: closer than ε."""
    x = torch.tensor([0.0, 0.5, -0.5, 3e-8, 0.5], dtype=torch.float64)
    report = check_function(fn, x)
    assert report.verdict == "correct", str(report)


def test_entries_at_a_kink_are_counted():
    report = check_function(torch.relu, torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0], dtype=torch.float64))
    assert report.by_parameter["input[0]"].kinks == 2
    assert "2 entries lie at a kink" in str(report)


class SlopeAtZero(torch.autograd.Function):
    """relu that claims a slope of 5 at exactly 0, outside every subgradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x > 0).double() + 5.0 * (x == 0).double())


def test_a_slope_outside_the_one_sided_ones_is_not_excused_by_the_kink():
    report = check_function(SlopeAtZero.apply, torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert report.verdict == "suspect"
    assert "lie outside the one-sided slopes" in str(report)


def test_only_tensors_that_require_grad_are_checked_if_any_does():
    a, b = randn(3).requires_grad_(), randn(3, seed=1)
    assert list(check_function(torch.mul, a, b).by_parameter) == ["input[0]"]
    assert list(check_function(torch.mul, a.detach(), b).by_parameter) == ["input[0]", "input[1]"]


def test_inputs_are_left_alone():
    x = randn(4).float().requires_grad_()
    before = x.detach().clone()
    check_function(torch.tanh, x)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert x.dtype == torch.float32


def test_outputs_marked_non_differentiable_are_left_out():
    report = check_function(lambda x: torch.native_layer_norm(x, (3,), None, None, 1e-5), randn(4, 3))
    assert report.verdict == "correct"
    assert "2 outputs that carry no gradient were left out" in report.notes


def test_a_module_is_checked_with_its_parameters():
    layer = nn.Linear(3, 2)
    report = check_function(layer, randn(4, 3))
    assert report.verdict == "correct"
    assert list(report.by_parameter) == ["input[0]", "weight", "bias"]


def test_random_masks_are_frozen_and_the_global_state_is_restored():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report = check_function(lambda x: F.dropout(x, 0.5) * x, randn(4, 3))
    assert report.verdict == "correct", str(report)
    assert "held fixed" in str(report)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_passed_in_is_frozen_too():
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()

    def noisy(x):
        return x * torch.rand(x.shape, generator=generator, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"same in two identical calls.*generators="):
        check_function(noisy, randn(4))
    generator.set_state(state)
    assert check_function(noisy, randn(4), generators=[generator]).verdict == "correct"
    assert torch.equal(generator.get_state(), state)


def test_a_true_gradient_of_zero_is_correct():
    """Σ softmax is 1 whatever x: the gradient is round-off on both sides, and their ratio means nothing."""
    report = check_function(lambda x: torch.softmax(x, 0).sum(), randn(6))
    assert report.verdict == "correct"
    assert "zero to within the noise floor" in report.by_parameter["input[0]"].reason


def test_noise_that_hides_everything_is_inconclusive():
    """A cost rounded to 1e-4 has no visible derivative; neither right nor wrong can be said."""

    class Coarse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh() + 1e-4 * torch.sin(1e13 * x)

        @staticmethod
        def backward(ctx, g):
            return g * (1 - ctx.saved_tensors[0].tanh() ** 2)

    report = check_function(Coarse.apply, randn(6), second_order=False)
    assert report.verdict == "inconclusive", str(report)
    assert "numerical error" in report.reason or "could not be measured" in report.reason


def test_the_first_error_is_reported_when_backward_raises():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no such thing")

    report = check_function(Raises.apply, randn(3))
    assert report.verdict == "wrong"
    assert "no such thing" in report.reason


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "words"),
    [
        (
            torch.abs,
            (torch.arange(3),),
            TypeError,
            r"must be given a floating-point tensor.*int64.*\.double\(\)",
        ),
        (torch.abs, (), TypeError, r"floating-point tensor to differentiate, got no inputs"),
        (torch.abs, (torch.ones(2, dtype=torch.complex64),), TypeError, r"inputs must be real.*view_as_real"),
        (torch.log, (torch.tensor([-1.0, 1.0]),), ValueError, r"must return finite numbers, got 1 of 2.*domain"),
        (
            torch.Tensor.to_dense,
            (torch.eye(2).to_sparse(),),
            TypeError,
            r"inputs must be dense, got .*sparse_coo.*to_dense",
        ),
        (lambda x: x.argmax(), (torch.ones(2),), ValueError, r"at least one floating-point tensor, got none"),
        (3, (torch.ones(2),), TypeError, r"fn must be callable, got int 3"),
    ],
)
def test_errors_say_what_to_do(fn, inputs, error, words):
    with pytest.raises(error, match=words):
        check_function(fn, *inputs)


def test_eps_is_checked():
    with pytest.raises(ValueError, match=r"eps must lie in \(0, 1\), got 0; the notes use 1e-7"):
        check_function(torch.tanh, randn(2), eps=0)
    with pytest.raises(ValueError, match=r"eps must lie in"):
        check_function(torch.tanh, randn(2), eps=math.nan)


def test_entries_at_the_edge_of_the_domain_are_measured_from_within():
    """A probability of 1e-6 cannot be moved by more: larger steps raise, and are left out."""
    x = torch.tensor([1e-6, 0.3, 0.7], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    report = check_function(lambda p: F.binary_cross_entropy(p, target), x, second_order=False)
    assert report.verdict == "correct", str(report)


class AssumesContiguous(torch.autograd.Function):
    """The identity whose backward reads its cotangent as one block of memory."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.as_strided(g, g.shape, torch.empty(g.shape).stride(), g.storage_offset()).clone()


class KeepsPositive(torch.autograd.Function):
    """The identity whose backward loses negative cotangents."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp_min(0)


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda x: AssumesContiguous.apply(x).cumsum(0), "the backward of AssumesContiguous: a strided grad_output"),
        (
            lambda x: (KeepsPositive.apply(x.square()) ** 2).cumsum(0).abs(),
            "the backward of KeepsPositive: it is not linear",
        ),
        (lambda x: AssumesContiguous.apply(x).view(-1).cumsum(0).view(4, 3), "contiguous memory is assumed"),
    ],
    ids=["contiguous", "positive", "contiguous, viewed"],
)
def test_a_function_deep_inside_keeps_the_contracts_by_itself(fn, says):
    report = check_function(fn, randn(4, 3), second_order=False)
    assert report.verdict == "wrong", str(report)
    assert says in " ".join(f.detail for f in report.findings)


def test_right_functions_inside_are_correct():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x * factor, x.sum()

        @staticmethod
        def backward(ctx, g, unused):
            return (g * ctx.factor if g is not None else 0) + unused, None

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(lambda t: Scale.apply(t, 3.0)[0].tanh(), x, use_reentrant=False)

    for fn in (lambda x: Scale.apply(x, 2.0)[0].exp() + Scale.apply(x, 2.0)[1], checkpointed):
        report = check_function(fn, randn(4, 3))
        assert report.verdict == "correct", str(report)
