"""The Triton kernels on a GPU: against a device copy's bandwidth, and against the other ways to do the same work.

    python -m experiments.benchmarks.cuda_kernels
    python -m experiments.benchmarks.cuda_kernels --dtypes bfloat16 --exponents 24 26 --no-compiled

Prints two tables, and the rows to enter by hand in ``MEASURED`` of ``torchnotes/ops/kernels/_dispatch.py``: a kernel
enters for the sizes from which on it beats the op's own plain arithmetic at every larger size measured. Without a CUDA
device it says so and measures nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.benchmarks.measure import interleaved, quartiles_of_ratio, ratio_of_medians
from experiments.console import Table
from torchnotes import ops
from torchnotes.ops.kernels import mode
from torchnotes.ops.kernels._dispatch import Kernel, Mode, Win
from torchnotes.ops.kernels.random_mask import LEVELS

WIDTH = 1024  # inputs and outputs of the dense layer
CLASSES = 32000
COUNT = round(0.8 * LEVELS)


@dataclass(frozen=True)
class Config:
    """What to time."""

    device: str = "cuda"  # "cpu" only to try the script itself, with TRITON_INTERPRET=1 and small sizes
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    exponents: tuple[int, ...] = (18, 20, 22, 24, 26)  # 2^k elements of x, of the layer's output, of the logits
    seconds: float = 1.0  # of measurement for each row
    sample: float = 0.005  # least seconds of one sample
    compiled: bool = True  # time torch.compile too, which takes some seconds a row to compile


@dataclass(frozen=True)
class Comparison:
    """Median seconds of forward and backward, each way, for one kernel, dtype and size.

    Attributes:
        kernel: which one.
        dtype: name of the dtype.
        elements: how many.
        seconds: way to median time; "kernel" and "plain" are the library's op, "eager" and "compiled" PyTorch's.
        surely_faster: the kernel beat the plain op in three quarters of the pairs of neighbouring samples.
    """

    kernel: Kernel
    dtype: str
    elements: int
    seconds: dict[str, float]
    surely_faster: bool

    @property
    def gain(self) -> float:
        """Time of the op's plain arithmetic over that of the kernel."""
        return self.seconds["plain"] / self.seconds["kernel"]


def randn(*shape: int, config: Config, dtype: torch.dtype, requires_grad: bool = False) -> Tensor:
    return torch.randn(*shape, device=config.device, dtype=dtype).requires_grad_(requires_grad)


def passes(config: Config, dtype: torch.dtype, elements: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Each kernel's launch alone, with the bytes it has to move; and a copy."""
    from torchnotes.ops.kernels import triton_cross_entropy as cross_entropy
    from torchnotes.ops.kernels import triton_dense as dense
    from torchnotes.ops.kernels import triton_dropout as dropout
    from torchnotes.ops.kernels.triton_random import draw_seed

    x = randn(max(elements // WIDTH, 8), WIDTH, config=config, dtype=dtype)
    grad, bias = torch.ones_like(x), x[0].clone()
    z = randn(max(elements // CLASSES, 1), CLASSES, config=config, dtype=dtype)
    target = torch.randint(CLASSES, (len(z),), device=config.device)
    forward = cross_entropy.CrossEntropyKernelFunction.forward
    _, share, top, log_total = forward(z, target, None, -100, "mean", 0.0, dtype)
    unit = torch.ones((), device=config.device, dtype=share.dtype)
    seed, size, logits = draw_seed(x, None), x.numel() * x.element_size(), z.numel() * z.element_size()
    target_of_copy = torch.empty_like(x)
    return {
        "copy": (2 * size, lambda: target_of_copy.copy_(x)),
        "dropout, either way": (2 * size, lambda: dropout._run(x, seed, COUNT)),
        "dense forward, ReLU": (2 * size, lambda: dense._epilogue(target_of_copy, bias, seed, "relu", 0.0, COUNT)),
        "dense forward, tanh": (2 * size, lambda: dense._epilogue(target_of_copy, bias, seed, "tanh", 0.0, COUNT)),
        "dense backward, ReLU": (3 * size, lambda: dense._prologue(grad, x, None, "relu", 0.0, COUNT, True)),
        "dense backward, tanh": (3 * size, lambda: dense._prologue(grad, x, seed, "tanh", 0.0, COUNT, True)),
        "cross-entropy forward": (logits, lambda: forward(z, target, None, -100, "mean", 0.0, dtype)),
        "cross-entropy backward": (
            2 * logits,
            lambda: cross_entropy._logit_gradient(unit, z, target, None, share, top, log_total, -100, 0.0),
        ),
    }


def bandwidths(config: Config) -> Table:
    """Each kernel's bytes a second over those of a copy of as many elements."""
    table = Table(
        "Bandwidth of each kernel, at the largest size",
        ["pass", "dtype", "elements", "GB/s", "of a copy"],
        caption="Bytes that must be read and written, over the time of the launch. 85 % of a copy is the aim.",
    )
    for name in config.dtypes:
        elements = 1 << max(config.exponents)
        work = passes(config, getattr(torch, name), elements)
        samples = interleaved(
            {what: call for what, (_, call) in work.items()},
            seconds=config.seconds * len(work),
            sample=config.sample,
            device=config.device,
        )
        speed = {what: size / statistics.median(samples[what]) for what, (size, _) in work.items()}
        for what, bytes_per_second in speed.items():
            share = bytes_per_second / speed["copy"]
            table.rows.append([what, name, f"{elements:,}", f"{bytes_per_second / 1e9:,.0f}", f"{share:.0%}"])
    return table


def ways(
    kernel: Kernel, config: Config, dtype: torch.dtype, elements: int
) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """The same forward by the library and by PyTorch, on the same tensors, and the tensors that want a gradient."""
    relu = nn.functional.relu
    if kernel == "dropout":
        x = randn(max(elements // WIDTH, 8), WIDTH, config=config, dtype=dtype, requires_grad=True)
        return {"ours": lambda: ops.dropout(x, keep_prob=0.8), "eager": lambda: nn.functional.dropout(x, 0.2)}, [x]
    if kernel == "dense":
        x = randn(max(elements // WIDTH, 8), WIDTH, config=config, dtype=dtype, requires_grad=True)
        layer = nn.Linear(WIDTH, WIDTH, device=config.device, dtype=dtype)
        return {
            "ours": lambda: ops.dense(x, layer.weight, layer.bias, keep_prob=0.8),
            "eager": lambda: nn.functional.dropout(relu(nn.functional.linear(x, layer.weight, layer.bias)), 0.2),
        }, [x, layer.weight, layer.bias]
    z = randn(max(elements // CLASSES, 1), CLASSES, config=config, dtype=dtype, requires_grad=True)
    target = torch.randint(CLASSES, (len(z),), device=config.device)
    return {
        "ours": lambda: ops.cross_entropy(z, target),
        "eager": lambda: nn.functional.cross_entropy(z, target),
    }, [z]


def compare(kernel: Kernel, config: Config, name: str, elements: int) -> Comparison:
    """Time one row."""
    forward, leaves = ways(kernel, config, getattr(torch, name), elements)
    if config.compiled:
        torch.compiler.reset()
        forward["compiled"] = torch.compile(forward["eager"])

    cotangent = torch.ones_like(forward["eager"]())

    def step(run: Callable[[], Tensor], chosen: Mode = "never") -> Callable[[], object]:
        def work() -> None:
            with mode(chosen):
                torch.autograd.grad(run(), leaves, cotangent)

        return work

    contenders = {"kernel": step(forward["ours"], "always"), "plain": step(forward["ours"])}
    contenders |= {way: step(run) for way, run in forward.items() if way != "ours"}
    samples = interleaved(contenders, seconds=config.seconds, sample=config.sample, device=config.device)
    return Comparison(
        kernel,
        name,
        elements,
        {way: statistics.median(times) for way, times in samples.items()},
        quartiles_of_ratio(samples["kernel"], samples["plain"])[1] < 1
        and ratio_of_medians(samples["kernel"], samples["plain"]) < 0.97,
    )


def wins(comparisons: Sequence[Comparison], capability: tuple[int, int]) -> list[Win]:
    """For each kernel and dtype the size from which on every size measured was won, and the least gain there."""
    found = []
    for kernel, dtype in dict.fromkeys((c.kernel, c.dtype) for c in comparisons):
        won: list[Comparison] = []
        rows = [c for c in comparisons if (c.kernel, c.dtype) == (kernel, dtype)]
        for row in sorted(rows, key=lambda c: c.elements, reverse=True):
            if not row.surely_faster:
                break
            won.append(row)
        if won:
            found.append(Win(kernel, capability, dtype, won[-1].elements, round(min(c.gain for c in won), 2)))
    return found


def as_table(comparisons: Sequence[Comparison]) -> Table:
    """Times as multiples of the kernel's: above 1, the kernel is faster."""
    others = [way for way in comparisons[0].seconds if way != "kernel"]
    table = Table(
        "Forward and backward: time of each way over that of the kernel",
        ["kernel", "dtype", "elements", "kernel, µs", *others],
        caption="plain is the same op without its kernel, eager and compiled are torch.nn's; below 1 the kernel loses.",
    )
    for c in comparisons:
        times = [c.seconds[way] / c.seconds["kernel"] for way in others]
        cells = [f"{ratio:.2f}" + ("" if ratio >= 1 else " (loses)") for ratio in times]
        table.rows.append([c.kernel, c.dtype, f"{c.elements:,}", f"{1e6 * c.seconds['kernel']:,.0f}", *cells])
    return table


def main(config: Config) -> None:
    """Measure, print the tables, print the rows to enter."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    if config.device == "cuda" and not torch.cuda.is_available():
        console.print("not measured: no CUDA device")
        return
    torch.manual_seed(0)
    kernels: tuple[Kernel, ...] = ("dropout", "dense", "cross_entropy")
    grid = [(kernel, name, 1 << k) for kernel in kernels for name in config.dtypes for k in config.exponents]
    comparisons = [compare(kernel, config, name, n) for kernel, name, n in track(grid, "Timing", console=console)]
    bandwidths(config).print(console)
    as_table(comparisons).print(console)
    on_gpu = config.device == "cuda"
    found = wins(comparisons, torch.cuda.get_device_capability() if on_gpu else (0, 0))
    where = f"{torch.cuda.get_device_name()}, " if on_gpu else ""
    console.print(f"MEASURED = (  # {where}torch {torch.__version__}", highlight=False, markup=False)
    for win in found:
        row = f'    Win("{win.kernel}", {win.capability}, "{win.dtype}", {win.from_elements}, {win.ratio}),'
        console.print(row, highlight=False, markup=False)
    console.print(")" if found else ")  # no kernel won", highlight=False, markup=False)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
