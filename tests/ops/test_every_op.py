"""What every op must do, op by op, against PyTorch's own and against difference quotients."""

from __future__ import annotations

import gc
import itertools
import re
import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from tests.ops._table import CASES, DENSE, ELEMENTWISE, LINEAR, Case, each
from torchnotes.ops.kernels import memory, random_mask

LOW = (torch.bfloat16, torch.float16)
# Half precision rounds each operation of a backward to 2^-8 or 2^-11; four of them, and a sum of five terms.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


def value_and_gradients(fn, inputs: tuple[Tensor, ...], cotangent: Tensor | None = None) -> list[Tensor]:
    y = fn(*inputs)
    if cotangent is None:
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


def assert_same(ours: list[Tensor], twin: list[Tensor], **tolerance: float) -> None:
    for mine, theirs in zip(ours, twin, strict=True):
        assert_close(mine, theirs, **tolerance)


@each()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_value_and_gradients_are_those_of_the_twin(case: Case, dtype: torch.dtype):
    inputs = case.inputs(dtype)
    assert_same(value_and_gradients(case.ours, inputs), value_and_gradients(case.twin, inputs), **TOLERANCE[dtype])


@each()
def test_gradcheck_with_forward_mode_and_batches(case: Case):
    assert gradcheck(
        case.ours,
        case.inputs(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=not case.random,  # no random number is drawn inside that vmap, ours or PyTorch's
    )
    assert gradgradcheck(case.ours, case.inputs(), check_fwd_over_rev=True, check_rev_over_rev=True)


@each()
def test_the_notes_ratio_is_at_most_1e_7(case: Case):
    # The notes' recipe in full: all arguments in one vector, two-sided differences at ε = 1e-7, float64. J is a sum of
    # some twelve terms of size 1, whose round-off puts the ratio near 1e-8.
    inputs = case.inputs()
    theta = torch.cat([x.detach().reshape(-1) for x in inputs])
    weights = torch.randn(case.ours(*inputs).shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def cost(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [x.numel() for x in inputs])
        y = case.ours(*(part.view(x.shape) for part, x in zip(parts, inputs, strict=True)))
        return (weights * y).sum()

    steps = 1e-7 * torch.eye(theta.numel(), dtype=torch.float64)
    approx = torch.stack([(cost(theta + step) - cost(theta - step)) / 2e-7 for step in steps])
    point = theta.clone().requires_grad_()
    (exact,) = torch.autograd.grad(cost(point), point)
    assert (approx - exact).norm() / (approx.norm() + exact.norm()) <= 1e-7


@each()
def test_any_subset_of_inputs_may_require_grad(case: Case):
    every = value_and_gradients(case.ours, case.inputs())[1:]
    for wanted in itertools.product([False, True], repeat=len(case.shapes)):
        inputs = tuple(x.detach().requires_grad_(want) for x, want in zip(case.inputs(), wanted, strict=True))
        y = case.ours(*inputs)
        assert y.requires_grad == any(wanted)
        if any(wanted):
            cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            y.backward(cotangent)
        for x, gradient, want in zip(inputs, every, wanted, strict=True):
            assert (x.grad is not None) == want
            if want:
                assert torch.equal(x.grad, gradient)


@each()
def test_no_graph_and_the_same_value_where_no_gradient_is_wanted(case: Case):
    inputs = case.inputs()
    with torch.no_grad():
        y = case.ours(*inputs)
    assert y.grad_fn is None
    assert torch.equal(y, case.ours(*inputs))
    with torch.inference_mode():
        assert torch.equal(case.ours(*inputs), y)


@each()
def test_strided_cotangents_and_untouched_arguments(case: Case):
    inputs = case.inputs()
    copies = [x.detach().clone() for x in inputs]
    shape = case.ours(*inputs).shape
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    transposed = plain.mT.contiguous().mT if len(shape) > 1 else plain
    stepped = torch.stack([plain, plain], dim=-1)[..., 0]
    expected = value_and_gradients(case.ours, inputs, plain)
    for cotangent in (transposed, stepped):
        before = cotangent.clone()
        assert_same(value_and_gradients(case.ours, inputs, cotangent), expected, rtol=1e-13, atol=1e-13)
        assert torch.equal(cotangent, before)
    expanded = torch.ones((), dtype=torch.float64).expand(shape)  # what .sum().backward() hands over
    assert_same(
        value_and_gradients(case.ours, inputs, expanded),
        value_and_gradients(case.ours, inputs, torch.ones(shape, dtype=torch.float64)),
        rtol=1e-13,
        atol=1e-13,
    )
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@each()
def test_the_output_is_freed_without_the_cyclic_collector(case: Case):
    gc.disable()
    try:
        y = case.ours(*case.inputs())
        alive = weakref.ref(y)
        del y
        assert alive() is None
    finally:
        gc.enable()


@each(ELEMENTWISE)
@pytest.mark.parametrize("layout", ["transposed", "stepped", "expanded", "empty", "scalar", "channels last"])
def test_layouts_of_elementwise_ops(case: Case, layout: str):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = {
        "transposed": base.T,
        "stepped": base[:, ::2],
        "expanded": base[0].expand(3, 6),
        "empty": base[:0],
        "scalar": base[0, 0],
        "channels last": base.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }[layout]
    inputs = (x.detach().requires_grad_(),)
    assert_same(value_and_gradients(case.ours, inputs), value_and_gradients(case.twin, inputs), rtol=1e-12, atol=1e-12)


@each()
@pytest.mark.parametrize("layout", ["transposed", "stepped", "expanded"])
def test_layouts_of_every_op(case: Case, layout: str):
    views = {
        "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t,
        "stepped": lambda t: torch.stack([t, -t], dim=-1)[..., 0],
        "expanded": lambda t: t[:1].expand(t.shape) if t.dim() > 1 else t,
    }
    laid_out = tuple(views[layout](x.detach()).requires_grad_() for x in case.inputs())
    contiguous = tuple(x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in laid_out)
    copies = [x.detach().clone() for x in laid_out]
    assert_same(
        value_and_gradients(case.ours, laid_out), value_and_gradients(case.ours, contiguous), rtol=1e-13, atol=1e-13
    )
    with torch.no_grad():
        case.ours(*laid_out)
    assert all(torch.equal(x, copy) for x, copy in zip(laid_out, copies, strict=True))


@each([LINEAR[0], *(case for case in DENSE if not case.random)])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (5, 0)])
def test_empty_batches_and_features_of_linear(case: Case, shape: tuple[int, ...]):
    features = shape[-1]
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (4, features), (4,)))
    assert_same(value_and_gradients(case.ours, inputs), value_and_gradients(case.twin, inputs))


@each()
def test_transforms_of_torch_func(case: Case):
    inputs = case.inputs(requires_grad=False)

    def cost(fn):
        return lambda *args: fn(*args).pow(2).sum()

    every = tuple(range(len(inputs)))

    def jacfwd(fn, every):
        return torch.func.jacfwd(fn, every, randomness="same")

    def hessian(fn, every):
        return jacfwd(torch.func.jacrev(fn, every), every)

    for transform in (torch.func.grad, jacfwd, hessian):
        mine, theirs = transform(cost(case.ours), every)(*inputs), transform(cost(case.twin), every)(*inputs)
        assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    tangents = tuple(torch.ones_like(x) for x in inputs)
    assert_close(torch.func.jvp(case.ours, inputs, tangents), torch.func.jvp(case.twin, inputs, tangents))


@each()
def test_per_sample_gradients_by_vmap(case: Case):
    shared = case.inputs(requires_grad=False)
    batch = torch.stack([shared[0], shared[0] * 2, shared[0] - 3])

    def cost(x: Tensor, *rest: Tensor) -> Tensor:
        return case.ours(x, *rest).pow(2).sum()

    per_sample = torch.func.grad(cost, tuple(range(len(shared))))
    batched = torch.vmap(per_sample, in_dims=(0, *(None for _ in shared[1:])), randomness="same")(batch, *shared[1:])
    singly = [per_sample(x, *shared[1:]) for x in batch]
    for got, expected in zip(batched, zip(*singly, strict=True), strict=True):
        assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-12)


COMPILED = [case for case in CASES if not case.random]  # the compiler takes no generator: see test_dropout


@each(COMPILED)
def test_compiled_without_a_graph_break(case: Case):
    torch._dynamo.reset()
    inputs = case.inputs()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    assert_same(value_and_gradients(compiled, inputs), value_and_gradients(case.ours, inputs), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert_close(compiled(*inputs), case.ours(*inputs))


@pytest.mark.skipif(
    " " in torch.__file__, reason="Inductor passes its linker torch's own path unquoted, spaces and all"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the import of Inductor gives one of torch's own
def test_every_op_compiled_by_inductor():
    # One case of each op in one graph: what takes the time is the C++ compiler, once for each pass.
    torch._dynamo.reset()
    one_each = list({re.split("[ ,]", case.name)[0]: case for case in reversed(COMPILED)}.values())
    assert len(one_each) == 14  # all but dropout, which has tests of its own
    inputs = [case.inputs() for case in one_each]
    leaves = [x for group in inputs for x in group]

    def every(*groups: tuple[Tensor, ...]) -> list[Tensor]:
        return [case.ours(*group) for case, group in zip(one_each, groups, strict=True)]

    def results(fn) -> list[Tensor]:
        outputs = fn(*inputs)
        cotangents = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs]
        return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, cotangents)]

    assert_same(results(torch.compile(every, fullgraph=True)), results(every), rtol=1e-12, atol=1e-12)


class AsModule(torch.nn.Module):
    def __init__(self, op) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Tensor) -> Tensor:
        return self.op(*args)


@each(COMPILED)
def test_exported(case: Case):
    inputs = case.inputs(requires_grad=False)
    program = torch.export.export(AsModule(case.ours), inputs)
    other = case.inputs(torch.float64, requires_grad=False)
    other = (other[0].flip(0), *other[1:])  # not the numbers it was traced with
    assert_close(program.module()(*other), case.ours(*other), rtol=1e-12, atol=1e-12)


@each(CASES)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_as_the_twin(case: Case, dtype: torch.dtype):
    inputs = case.inputs(torch.float32)

    def lowered(fn):
        def run(*args: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                return fn(*args)

        return run

    with torch.autocast("cpu", dtype):
        within = [value_and_gradients(fn, inputs) for fn in (case.ours, case.twin)]
    without = [value_and_gradients(lowered(fn), inputs) for fn in (case.ours, case.twin)]  # only the forward inside
    for ours, twin in (within, without):
        assert [x.dtype for x in ours] == [x.dtype for x in twin]
        assert_same(ours, twin, **TOLERANCE[dtype])


@each(ELEMENTWISE)
def test_nan_in_nan_out(case: Case):
    x = torch.tensor([1.0, torch.nan, -2.0])
    y = case.ours(x)
    assert y.isnan().tolist() == [False, True, False]


@each()
def test_nan_in_any_argument_is_nan_in_the_output_and_the_gradient(case: Case):
    for position in range(len(case.shapes)):
        inputs = case.inputs()
        with torch.no_grad():
            inputs[position].reshape(-1)[0] = torch.nan
        y, *gradients = value_and_gradients(case.ours, inputs)
        assert y.isnan().any()
        try:
            _, *expected = value_and_gradients(case.twin, inputs)
        except RuntimeError:
            assert case.name.startswith("binary_cross_entropy")  # of probabilities: PyTorch raises at NaN
            continue
        for mine, theirs in zip(gradients, expected, strict=True):
            assert not (theirs.isnan() & ~mine.isnan()).any()


@each(ELEMENTWISE)
def test_large_tensors_take_the_same_values(case: Case):
    # Large enough for the mask to be drawn block by block, with a last block that is not full.
    x = torch.randn(2**20 + 17, generator=torch.Generator().manual_seed(4)).requires_grad_()
    assert_same(value_and_gradients(case.ours, (x,)), value_and_gradients(case.twin, (x,)), rtol=1e-5, atol=1e-6)


@each(ELEMENTWISE)
def test_memory_asked_for_beforehand_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch):
    inputs = case.inputs()
    expected = value_and_gradients(case.ours, inputs)
    asked = []
    monkeypatch.setattr(memory, "_ask_for_large_pages", asked.append)
    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(random_mask, "_SMALL", 1)
    assert_same(value_and_gradients(case.ours, inputs), expected, rtol=1e-15, atol=1e-15)
    assert len(asked) >= 1  # it did take that way
    assert gradcheck(case.ours, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(case.ours, inputs)


def test_large_memory_is_asked_for_on_a_cpu_and_only_then():
    with torch.no_grad():
        large = torch.empty(memory.LARGE, dtype=torch.uint8)
        result = memory.large_like(large)
        assert result.shape == large.shape
        assert result.fill_(1).sum() == memory.LARGE
        assert memory.large_like(large[1:]) is None
        assert memory.large_like(large.to("meta")) is None
    assert memory.large_like(torch.empty(memory.LARGE, dtype=torch.uint8)) is None  # someone might differentiate


@pytest.mark.parametrize("offset", [0, 1, 4095])
def test_the_advice_is_for_the_whole_pages_of_the_block(offset: int, monkeypatch: pytest.MonkeyPatch):
    class Block:
        def data_ptr(self) -> int:
            return 40960 + offset

        def untyped_storage(self) -> Block:
            return self

        def nbytes(self) -> int:
            return 100_000

    given: list[tuple[int, int, int]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *arguments: given.append(arguments))
    memory._ask_for_large_pages(Block())
    start = 40960 if offset == 0 else 45056
    assert given == [(start, 40960 + offset + 100_000 - start, 14)]  # 14 is MADV_HUGEPAGE
    monkeypatch.setattr(memory, "_madvise", lambda: None)  # a system without it
    memory._ask_for_large_pages(Block())


@each(ELEMENTWISE)
def test_integers_are_refused(case: Case):
    with pytest.raises(TypeError, match=r"input must be a floating-point tensor, got dtype int64; convert it with"):
        case.ours(torch.arange(3))
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got list \[1\.0\]; convert it with"):
        case.ours([1.0])
