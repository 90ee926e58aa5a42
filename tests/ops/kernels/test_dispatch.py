import os
import subprocess
import sys

import pytest
import torch

from torchnotes.ops import cross_entropy, dense, dropout
from torchnotes.ops.kernels import _dispatch, mode


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"mode must be 'auto', 'always' or 'never', got 'on'; 'auto' uses a kernel"):
        with mode("on"):
            pass


def test_mode_ends_with_its_block():
    assert _dispatch._mode.get() == "auto"
    with mode("never"), mode("always"):
        assert _dispatch._mode.get() == "always"
    with pytest.raises(KeyError), mode("always"):
        raise KeyError
    assert _dispatch._mode.get() == "auto"


def in_a_process(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("TORCHNOTES_KERNELS", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=False
    )


def test_the_environment_sets_the_mode_and_importing_loads_no_triton():
    code = "import sys, torchnotes.ops as o; print(o.kernels._dispatch._mode.get(), 'triton' in sys.modules)"
    assert in_a_process(code, TORCHNOTES_KERNELS="never").stdout.split() == ["never", "False"]
    wrong = in_a_process(code, TORCHNOTES_KERNELS="yes")
    assert "TORCHNOTES_KERNELS must be 'auto', 'always' or 'never', got 'yes'" in wrong.stderr


def test_cpu_tensors_take_the_arithmetic_in_every_mode():
    x = torch.ones(16, 4)
    plain = dropout(x, keep_prob=0.5, generator=torch.Generator().manual_seed(0))
    with mode("always"):
        assert not _dispatch.chosen("dropout", x)
        assert not _dispatch.dense_chosen(x, 4)
        assert torch.equal(dropout(x, keep_prob=0.5, generator=torch.Generator().manual_seed(0)), plain)
        assert dense(x, torch.ones(3, 4)).shape == (16, 3)
        cross_entropy(x, torch.zeros(16, dtype=torch.long))


class OnGPU:
    """What the rule looks at in a CUDA tensor, for a machine without one."""

    is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda", 0)

    def __init__(self, elements):
        self.elements = elements

    def numel(self):
        return self.elements


def test_a_kernel_applies_from_its_measured_size_on_its_gpu_and_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_dispatch, "_triton_found", lambda: True)
    win = _dispatch.Win("dropout", (9, 0), "bfloat16", 1000, 1.5)
    x = OnGPU(1000)
    assert _dispatch._applies(win, "dropout", x, 1000)
    assert not _dispatch._applies(win, "dropout", x, 999)
    assert not _dispatch._applies(win, "dense", x, 1000)
    assert not _dispatch._applies(win._replace(capability=(8, 0)), "dropout", x, 1000)
    assert not _dispatch._applies(win._replace(dtype="float32"), "dropout", x, 1000)


def test_every_row_of_the_table_is_a_win():
    for win in _dispatch.MEASURED:
        assert win.ratio > 1
        assert getattr(torch, win.dtype) in _dispatch.DTYPES


def test_asking_for_kernels_without_triton_says_so(monkeypatch):
    monkeypatch.setattr(_dispatch, "_triton_found", lambda: False)
    with pytest.raises(ImportError, match="mode 'always' needs Triton, which is not installed; pip install triton"):
        _dispatch._require_triton()
