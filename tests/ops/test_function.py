"""The plumbing of the base class: which way an op is run, and that every way gives the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from torchnotes.ops import _function
from torchnotes.ops._function import Op, may_overwrite, save

CALLS: list[str] = []


class Square(Op):
    """The example of the module's docstring, with a record of what ran."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        CALLS.append("forward")
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        CALLS.append("setup_context")
        save(ctx, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_y * 2 * x

    jvp = backward


class LowCube(Square):
    autocast = "low"


class Float32Square(Square):
    autocast = "float32"


@pytest.fixture(autouse=True)
def _fresh_calls():
    CALLS.clear()


@pytest.fixture(params=["fast path", "public path"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_function, "_FAST_PATH", request.param == "fast path")
    return request.param


def test_this_torch_has_the_fast_path():
    # Fails on a torch that has moved what it rests on: everything still works then, only slower; someone should know.
    assert _function._FAST_PATH


@pytest.mark.parametrize("name", ["_transforms_active", "_is_legacy_batched"])
def test_a_missing_private_name_turns_the_fast_path_off(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(_function, name, _function._missing)
    assert not _function._fast_path_works()


def test_a_changed_private_call_turns_the_fast_path_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(_function.forward_ad, "_current_level")
    assert not _function._fast_path_works()


def test_the_probe_at_import_starts_no_autograd_thread():
    # A process in which the engine has started its device threads may no longer fork; a DataLoader does.
    script = (
        "import os, torch, torchnotes.ops as ops\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    x = torch.ones(3, requires_grad=True); ops.relu(x).sum().backward(); os._exit(int(x.grad.sum() != 3))\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_both_paths_give_every_derivative(path: str):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = Square.call(x)
    assert type(y.grad_fn).__name__ == "SquareBackward"
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close(first.detach(), 2 * x.detach())
    assert_close(second, torch.full_like(x, 2))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(3, dtype=torch.float64))
        tangent = torch.autograd.forward_ad.unpack_dual(Square.call(dual)).tangent
    assert_close(tangent, 2 * x.detach())
    assert torch.func.hessian(lambda x: Square.call(x).sum())(x.detach()).diagonal().tolist() == [2.0, 2.0, 2.0]
    assert torch.vmap(Square.call)(x.detach()).tolist() == [1.0, 4.0, 9.0]


@pytest.mark.parametrize("wanted", ["no grad", "inference", "nothing requires grad"])
def test_no_autograd_where_no_gradient_is_wanted(wanted: str):
    x = torch.ones(2, requires_grad=wanted != "nothing requires grad")
    mode = {"no grad": torch.no_grad(), "inference": torch.inference_mode()}.get(wanted, torch.enable_grad())
    with mode:
        y = Square.call(x)
    assert CALLS == ["forward"]
    assert not y.requires_grad


def test_forward_mode_works_where_grad_mode_is_off():
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.tensor([3.0]), torch.tensor([1.0]))
        assert torch.autograd.forward_ad.unpack_dual(Square.call(dual)).tangent.tolist() == [6.0]


def test_nothing_may_be_overwritten_where_it_is_differentiated_or_batched():
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert may_overwrite(x)
        with torch.autograd.forward_ad.dual_level():
            assert not may_overwrite(x)
        torch.vmap(lambda v: pytest.fail("overwritten") if may_overwrite(v) else v)(x)
    assert not may_overwrite(x)
    seen = []

    class Spy(Square):
        @staticmethod
        def backward(ctx: Any, grad_y: Tensor) -> Tensor:
            seen.append(may_overwrite(grad_y))
            return grad_y * 2 * ctx.saved_tensors[0]

    y = Spy.call(x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(3), create_graph=True)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert seen == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_policies(dtype: torch.dtype):
    x = torch.ones(2, requires_grad=True)
    double, half = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=dtype)
    with torch.autocast("cpu", dtype):
        assert LowCube.call(x).dtype == dtype
        assert LowCube.call(double).dtype == torch.float64
        assert Float32Square.call(half).dtype == torch.float32
        assert Float32Square.call(double).dtype == torch.float64
        assert Square.call(half).dtype == dtype
        LowCube.call(x).sum().backward()
    assert x.grad.dtype == torch.float32
    assert LowCube.call(x).dtype == torch.float32


def test_an_op_without_forward_mode_says_so():
    class Backward(Op):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad_y: Tensor) -> Tensor:
            return grad_y

    assert Backward.call(torch.ones(1, requires_grad=True)).requires_grad
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(Backward.call, (torch.ones(1),), (torch.ones(1),))


def test_the_compiled_variant_keeps_the_second_use_apart():
    # Stale state on the class would make the first backward use the second call's tensors.
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    first, second = Square.call(x), Square.call(3 * x)
    (of_first,) = torch.autograd.grad(first.sum(), x)
    (of_second,) = torch.autograd.grad(second.sum(), x)
    assert of_first.tolist() == [2.0, 4.0]
    assert of_second.tolist() == [18.0, 36.0]
