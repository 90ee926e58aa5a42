"""Gradient checking: the notes' figures, the best ε, a gallery of planted bugs, and the check after training.

    python -m experiments.gradient_checking

1. θ³ at 1 with ε = 0.01: the two-sided difference gives 3.0001, the one-sided 3.0301.
2. The ratio of a right gradient against ε, for three difference formulas, in float32 and float64: a V, whose left arm
   is the round-off that the checker measures and whose right arm is the formula's own error.
3. Wrong backwards planted in a digit classifier: what PyTorch's own check says, what this one says, and whom it names.
4. A gradient that is right at random initialisation and wrong after training: why the notes check twice.
5. Three misprints of the notes put to the same test.

Source: the notes, "gradient checking"; SPEC D1-D10, G8, G11, G12, G17.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.config import CommonConfig
from experiments.console import Claim, Table, command_line, markdown_reading, print_reading, progress, record
from experiments.logs import VariantLogs, how_to_open, save_figure
from experiments.misprints import misprint_claims
from experiments.report import terminal
from torchnotes.gradcheck import (
    GradientReport,
    check_function,
    check_gradients,
    gradient_ratio,
    numerical_gradient,
    recheck_after,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

NAME = "gradient_checking"
SCHEMES = ("forward", "central", "five-point")
LABELS = {"forward": "one-sided", "central": "two-sided", "five-point": "five-point"}
V_TAG = (
    "1 Ratio of a right gradient against the step (step n of the curve is epsilon = 10 to the minus n)/log10 of ratio"
)


@dataclass(frozen=True)
class GradientCheckingConfig(CommonConfig):
    """Gradient checking: the notes' figures, the best ε, a gallery of planted bugs, and the check after training."""

    steps: int = 300
    """Training steps before the second check."""


@dataclass
class Results:
    """What the experiment found."""

    cube: dict[str, float] = field(default_factory=dict)
    ratios: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    floor: float = 0.0
    gallery: dict[str, tuple[bool, GradientReport]] = field(default_factory=dict)
    rechecks: dict[str, dict[int, GradientReport]] = field(default_factory=dict)


Fault = Callable[[Tensor, Tensor], Tensor]


class FaultyTanh(torch.autograd.Function):
    """tanh whose backward passes through a fault of the caller's choice: fault(grad, slope)."""

    @staticmethod
    def forward(ctx, x, fault):  # type: ignore[no-untyped-def]
        """Compute tanh x, and keep it."""
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.fault = fault
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """Let the fault make the gradient of the cotangent and the slope 1 − y²."""
        (y,) = ctx.saved_tensors
        return ctx.fault(grad, 1 - y**2), None


class Tanh(nn.Module):
    """The faulty tanh as a layer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        """Apply tanh, elementwise."""
        out: Tensor = FaultyTanh.apply(x, self.fault)
        return out


GALLERY: dict[str, Fault] = {
    "right": lambda g, s: g * s,
    "absolute value of the gradient": lambda g, s: g.abs() * s,
    "gradient clipped to ±1": lambda g, s: g.clamp(-1, 1) * s,
    "gradient modified in place": lambda g, s: g.mul_(s),
    "1.0005 times too large": lambda g, s: 1.0005 * g * s,
    "float32 on the way": lambda g, s: (g.float() * s.float()).double(),
    "slope forgotten": lambda g, s: g.clone(),
    "sign": lambda g, s: -g * s,
}


def digits(config: GradientCheckingConfig, samples: int) -> tuple[Tensor, Tensor]:
    """Handwritten digits, pixels normalised over the samples taken."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[:samples]
    x = torch.as_tensor(images, dtype=torch.float64)[chosen]
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return x.to(config.device), torch.as_tensor(labels)[chosen].to(config.device)


def network(
    config: GradientCheckingConfig, sizes: tuple[int, ...], activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Affine layers with an activation between, in float64, seeded."""
    generator = torch.Generator().manual_seed(config.seed)
    layers: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(n_in, n_out).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(n_out, n_in, generator=generator, dtype=torch.float64) / n_in**0.5)
            layer.bias.zero_()
        layers += [layer, activation()] if k < len(sizes) - 2 else [layer]
    return nn.Sequential(*layers).to(config.device)


def notes_figures() -> dict[str, float]:
    """θ³ at θ = 1 with ε = 0.01."""
    one = torch.tensor(1.0, dtype=torch.float64)
    return {s: float(numerical_gradient(lambda t: t**3, one, eps=0.01, scheme=s)) for s in SCHEMES}  # type: ignore[arg-type]


def ratios_against_eps(config: GradientCheckingConfig, results: Results, tick: Callable[[str], None]) -> None:
    """The notes' ratio of a right gradient for every formula, precision and power of ten."""
    x, y = digits(config, 16)
    x = x[:, 16:24]  # eight pixels: a net small enough to take every difference at every ε
    model = network(config, (8, 6, 10), nn.Tanh)
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    results.floor = check_gradients(model, x, y, loss=F.cross_entropy, modules=False).noise_floor
    for dtype in ("float64", "float32"):
        precision = getattr(torch, dtype)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).to(precision)

        data = x.to(precision)

        def cost(flat: Tensor, data: Tensor = data) -> Tensor:
            parts = flat.split([s.numel() for s in shapes])
            own = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            out: Tensor = F.cross_entropy(torch.func.functional_call(model, own, (data,)), y)
            return out

        exact = torch.func.grad(cost)(theta)
        for scheme in SCHEMES:
            row = results.ratios.setdefault((scheme, dtype), {})
            for n in range(1, 7 if config.quick else 12):
                approx = numerical_gradient(cost, theta, eps=10.0**-n, scheme=scheme)  # type: ignore[arg-type]
                row[n] = gradient_ratio(approx, exact)
            tick(f"{LABELS[scheme]} differences in {dtype}")


def passes_torch(fault: Fault, device: str) -> bool:
    """Whether torch.autograd.gradcheck, in its default slow mode, lets the backward through."""
    x = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64, device=device).view(3, 4).requires_grad_()
    return bool(torch.autograd.gradcheck(lambda t: FaultyTanh.apply(t, fault), (x,), raise_exception=False))


def gallery(config: GradientCheckingConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Each fault in the middle of a digit classifier."""
    x, y = digits(config, 16 if config.quick else 64)
    for name, fault in GALLERY.items():
        model = network(config, (64, 12, 10), lambda fault=fault: Tanh(fault))  # type: ignore[misc]
        report = check_gradients(model, x, y, loss=F.cross_entropy, progress=False)
        results.gallery[name] = (passes_torch(fault, config.device), report)
        tick(f"planted: {name}")


def grown(g: Tensor, s: Tensor) -> Tensor:
    """Right while |tanh| < 0.99, and then 0: seen only when the weights have grown."""
    return torch.where(s > 1 - 0.99**2, g * s, 0.0)


def rechecks(config: GradientCheckingConfig, results: Results, tick: Callable[[str], None]) -> None:
    """Train two nets, checking each at the first step and after the last."""
    x, y = digits(config, 128)
    steps = 60 if config.quick else config.steps
    for name, fault in (("right", GALLERY["right"]), ("wrong where tanh saturates", grown)):
        model = network(config, (64, 12, 10), lambda fault=fault: Tanh(fault))  # type: ignore[misc]
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
        recheck = recheck_after(steps)
        for _ in range(steps + 1):
            recheck(model, x[:32], y[:32], loss=F.cross_entropy, modules=False, progress=False)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        results.rechecks[name] = recheck.reports
        tick(f"re-checked: {name}")


def v_figure(results: Results) -> Figure:
    """The ratio against ε, log-log, with the measured round-off floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(SCHEMES, ("tab:red", "tab:blue", "tab:green"), strict=True))
    for (scheme, dtype), row in results.ratios.items():
        style = "-o" if dtype == "float64" else "--s"
        axes.loglog(
            [10.0**-n for n in row], [max(v, 1e-16) for v in row.values()], style, color=colors[scheme], ms=4,
            label=f"{LABELS[scheme]}, {dtype}",
        )  # fmt: skip
    for dtype, scale in (("float64", 1.0), ("float32", 2.0**29)):
        steps = [10.0**-n for n in next(iter(results.ratios.values()))]
        floor = [min(results.floor * scale * 1e-7 / h, 1.0) for h in steps]
        axes.loglog(
            steps, floor, ":", color="black" if dtype == "float64" else "gray", label=f"round-off floor, {dtype}"
        )
    axes.axvline(1e-7, color="lightgray", zorder=0)
    axes.annotate("the notes' ε", (1e-7, 1e-5), rotation=90, ha="right", color="gray", fontsize=9)
    axes.set(xlabel="step ε", ylabel="ratio ‖dθ_approx − dθ‖ / (‖dθ_approx‖ + ‖dθ‖)", ylim=(1e-14, 3))
    axes.set_title("A right gradient checked with different steps", loc="left")
    axes.legend(fontsize=8, ncols=2, loc="lower left")
    return figure


def tables(results: Results) -> tuple[Table, Table]:
    """The best step of each formula, and the gallery."""
    best = Table("The best step of each formula", ("formula", "precision", "best ε", "ratio there", "ratio at 1e-7"))
    for (scheme, dtype), row in results.ratios.items():
        n = min(row, key=row.__getitem__)
        at_notes = f"{row[7]:.1e}" if 7 in row else "-"
        best.rows.append((LABELS[scheme], dtype, f"1e-{n:02d}", f"{row[n]:.1e}", at_notes))
    bugs = Table("Planted bugs", ("what is planted", "torch gradcheck", "this check", "ratio", "whom it names"))
    for name, (passes, report) in results.gallery.items():
        culprits = ", ".join(report.culprits) or "-"
        bugs.rows.append((name, "passes" if passes else "fails", report.verdict, f"{report.ratio:.1e}", culprits))
    return best, bugs


def claims(results: Results) -> list[Claim]:
    """The reading, in plain words."""
    two, one = results.cube["central"], results.cube["forward"]
    unseen = [n for n, (passes, _) in results.gallery.items() if passes and n != "right"]
    caught = [n for n, (_, r) in results.gallery.items() if n != "right" and r.verdict == "wrong"]
    named = [n for n in caught if results.gallery[n][1].culprits == ("1",)]
    right = results.gallery["right"][1].verdict
    trained = {n: [r.verdict for r in reports.values()] for n, reports in results.rechecks.items()}
    middle = results.ratios["central", "float64"]
    return [
        Claim(
            "The two-sided difference of θ³ at 1 with ε = 0.01 is 3.0001, the one-sided 3.0301.",
            math.isclose(two, 3.0001, abs_tol=1e-9) and math.isclose(one, 3.0301, abs_tol=1e-9),
            f"Measured {two:.4f} and {one:.4f}.",
        ),
        Claim(
            "Two-sided differences are the more exact at every ε above their best.",
            all(middle[n] < results.ratios["forward", "float64"][n] for n in range(1, 6)),
            f"At ε = 1e-3: {middle[3]:.0e} against {results.ratios['forward', 'float64'][3]:.0e}.",
        ),
        Claim(
            "Every planted bug is found, and its layer named, while the right backward is called correct.",
            len(caught) == len(results.gallery) - 1 and len(named) == len(caught) and right == "correct",
            f"{len(caught)} of {len(GALLERY) - 1} found; torch.autograd.gradcheck passes {len(unseen)} of them.",
        ),
        Claim(
            "A check at random initialisation alone is not enough.",
            trained["right"] == ["correct"] * 2 and trained["wrong where tanh saturates"] == ["correct", "wrong"],
            "Before and after training: "
            + "; ".join(f"{name}, {' and '.join(verdicts)}" for name, verdicts in trained.items())
            + ".",
        ),
    ]


def write_logs(config: GradientCheckingConfig, results: Results, logs: VariantLogs, reading: list[Claim]) -> None:
    """Curves a formula and precision each, the figure, and the reports as text."""
    for (scheme, dtype), row in results.ratios.items():
        writer = logs[f"{LABELS[scheme]}_{dtype}"]
        for n, ratio in row.items():
            if ratio > 0:
                writer.add_scalar(V_TAG, math.log10(ratio), n)
    floor = logs["round-off_floor_float64"]
    for n in next(iter(results.ratios.values())):
        floor.add_scalar(V_TAG, min(math.log10(results.floor) + n - 7, 0.0), n)
    overview = logs["overview"]
    save_figure(
        overview,
        "2 The same as a picture/Ratio of a right gradient against the step",
        v_figure(results),
        logs.folder / "v_curve.png",
        "Right arm: the error of the difference formula, which falls with ε. Left arm: round-off, which grows as ε "
        "falls, along the dotted floor that the checker measures. In float32 no step comes near the notes' threshold.",
    )
    best, bugs = tables(results)
    text = f"{markdown_reading(reading)}\n\n{best.markdown()}\n\n{bugs.markdown()}"
    overview.add_text("0 What was found", text)
    for name, (_, report) in results.gallery.items():
        overview.add_text(f"3 Reports on planted bugs/{name}", report.to_markdown())


def main(config: GradientCheckingConfig, console: Console | None = None) -> Results:
    """Run the experiment, write its logs, print its tables and their reading."""
    console = terminal(console)
    results = Results(cube=notes_figures())
    assert check_function(lambda t: t**3, torch.tensor(1.0)).ok
    with VariantLogs(config.log_dir / NAME) as logs:
        with progress(console, 6 + len(GALLERY) + 2) as tick:
            ratios_against_eps(config, results, tick)
            gallery(config, results, tick)
            rechecks(config, results, tick)
        reading = [*claims(results), *misprint_claims(config.seed)]
        write_logs(config, results, logs, reading)
    for table in tables(results):
        table.print(console)
    print_reading(console, reading)
    record(NAME, config, reading, tables(results))
    console.print(f"Curves, picture and reports: {how_to_open(logs.folder)}", soft_wrap=True)
    return results


if __name__ == "__main__":
    command_line(GradientCheckingConfig, main, NAME)
