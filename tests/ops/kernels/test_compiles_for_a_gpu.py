"""Compile every kernel to machine code for an H100 or H200: that needs no GPU, and the interpreter does not do it."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux on x86-64)")

# One process compiles all: here torch.compile may have left Triton in the interpreter's mode or another one's cache.
SCRIPT = """
import sys, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torchnotes.ops.kernels import triton_cross_entropy as ce, triton_dense as dense, triton_dropout as dropout

def ptx(kernel, dtype, constants, aligned):
    inner = "fp64" if dtype == "fp64" else "fp32"
    kinds = dict.fromkeys(("loss_ptr", "share_ptr", "top_ptr", "log_ptr", "partial_ptr", "weight_total_ptr",
                           "grad_loss_ptr"), "*" + inner) | dict.fromkeys(("seed_ptr", "target_ptr"), "*i64")
    constants = constants | {"ACC": tl.float64 if dtype == "fp64" else tl.float32}
    def kind(name):
        return "constexpr" if name in constants else kinds.get(name, "*" + dtype if name.endswith("_ptr") else "i32")
    names = kernel.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, {name: kind(name) for name in names}, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]

dtype = sys.argv[1]
size = {"fp32": 4, "bf16": 2, "fp64": 8}[dtype]
tile = {"LANES": 8, "ROWS": 16 // size, "COLUMNS": 128, "ALPHA": 0.1, "BIAS": True, "DROP": True}
softmax = {"column_stride": 1, "SMOOTHING": 0.1, "FLOOR": 1e-4, "WEIGHT": True, "ROWS": 1, "BLOCK": 1024}
print("== dropout"); print(ptx(dropout._dropout_kernel, dtype, {"LANES": 8, "BLOCK": 2048 // size},
                               ("x_ptr", "y_ptr", "size", "stride")))
for activation in ("relu", "tanh"):
    c = tile | {"ACTIVATION": activation}
    print("== dense forward"); print(ptx(dense._forward_kernel, dtype, c, ("z_ptr", "size", "stride", "columns")))
    c = c | {"MASK": activation == "tanh", "grad_column_stride": 1}
    print("== dense backward"); print(ptx(dense._backward_kernel, dtype, c,
        ("grad_y_ptr", "y_ptr", "grad_z_ptr", "size", "stride", "columns", "grad_row_stride")))
print("== cross-entropy forward"); print(ptx(ce._forward_kernel, dtype, softmax, ("z_ptr", "classes", "row_stride")))
print("== cross-entropy backward"); print(ptx(ce._backward_kernel, dtype, softmax,
    ("z_ptr", "grad_z_ptr", "weight_ptr", "classes", "row_stride")))
"""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_kernel_compiles_and_moves_16_bytes_at_a_time(dtype, tmp_path):
    script = tmp_path / "compile.py"  # Triton reads a kernel's source from its file
    script.write_text(SCRIPT)
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**kept, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(script), dtype], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = re.split(r"^== ", done.stdout, flags=re.MULTILINE)[1:]
    assert len(kernels) == 7
    for kernel in kernels:
        name = kernel.splitlines()[0]
        assert "ld.global.v4.b32" in kernel, name
        if name != "cross-entropy forward":
            assert "st.global.v4.b32" in kernel, name
    # No random bit crosses shared memory: its threads would wait for one another at a barrier.
    assert "bar.sync" not in kernels[0]
