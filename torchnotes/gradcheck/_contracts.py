"""What every backward owes its caller, whatever it computes; checked without any ε.

A backward is a linear map of the cotangent ȳ = ∂L/∂y. It may not change ȳ, nor care how ȳ lies in memory, nor which of
its inputs ask for a gradient, nor what was computed before or since.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from torchnotes.gradcheck._nested import arriving, complaint_of, custom_nodes, inner_nodes, strided, transposed
from torchnotes.gradcheck._objective import dense
from torchnotes.gradcheck._precision import rounding
from torchnotes.gradcheck._subject import Subject
from torchnotes.gradcheck.compare import norm
from torchnotes.gradcheck.report import Finding

EXACT = 1e-10  # relative: float64 rounding leaves 1e-15, float32 arithmetic on the way leaves 1e-8
HUGE, TINY = 2.0**16, 2.0**-60  # powers of two scale without rounding; the usual loss scale, and nearly nothing
COARSE_SCALE = 4.0  # half precision overflows and vanishes soon
ALL_SUBSETS = 4  # up to this many inputs every subset is tried

Gradients = list[Tensor]


class Contracts:
    """The contract tests of one subject at one point.

    Args:
        subject: the function under test.
        generator: draws the cotangents.
    """

    def __init__(self, subject: Subject, generator: torch.Generator) -> None:
        self.subject, self._generator = subject, generator
        self.values = subject.values
        self.eps, self.dtype = rounding(lambda: subject(self.values))
        self.exact = max(EXACT, 4 * self.eps)
        self.outputs = subject(self.values)
        self.live = [k for k, o in enumerate(self.outputs) if o.requires_grad]
        self.u, self.v = self._cotangents(), self._cotangents()
        self.reference = self.pull(self.u)
        self.floor = self._floor()

    def _cotangents(self) -> list[Tensor]:
        return [self._random_like(self.outputs[k]) for k in self.live]

    def _random_like(self, o: Tensor) -> Tensor:
        return torch.randn(o.shape, generator=self._generator, dtype=torch.float64).to(device=o.device, dtype=o.dtype)

    def _floor(self) -> list[float]:
        """Below this a gradient is round-off of its own terms, tensor by tensor.

        Measured: how far the gradient moves when the cotangent does by a few units in the last place. Terms that cancel
        (softmax summed, a norm over one element) leave their round-off there, and nothing else does.
        """
        size = norm(*self.u) * norm(*(self.outputs[k] for k in self.live))
        floor = [2.0**-46 * size / (norm(v) or 1.0) for v in self.values]
        for cotangents in (self.u, self.v):
            here = self.pull(cotangents)
            for _ in range(3):
                near = [c * (1 + 2.0**-50 * self._random_like(c)) for c in cotangents]
                moved = [norm(torch.nan_to_num(a - b)) for a, b in zip(self.pull(near), here, strict=True)]
                floor = [max(f, 32 * m) for f, m in zip(floor, moved, strict=True)]
        return floor

    def _apart(self, a: Sequence[Tensor], b: Sequence[Tensor], scale: Sequence[Tensor] = ()) -> float:
        return distance(a, b, scale, self.floor)

    def pull(
        self,
        cotangents: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
        *,
        raw: bool = False,
        replay: bool = True,
    ) -> Gradients:
        """The backward: gradients of every value for the given cotangents; zeros where there is no path.

        Contiguous cotangents are copied first, so that a backward that writes into them is caught by one test only.
        """
        if replay:
            self.subject.random.restore()
        if not raw:
            cotangents = [c.clone() if c.is_contiguous() else c for c in cotangents]
        outputs = self.outputs if outputs is None else outputs
        wanted = [v for v in self.values if v.requires_grad]
        live = [outputs[k] for k in self.live]
        pairs = [(o, c) for o, c in zip(live, cotangents, strict=True) if o.requires_grad]
        if not pairs or not wanted:
            return [torch.zeros_like(v) for v in self.values]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [c for _, c in pairs], retain_graph=True, allow_unused=True
            )
        )
        got = [next(found) if v.requires_grad else None for v in self.values]
        return [torch.zeros_like(v) if g is None else dense(g.detach()) for v, g in zip(self.values, got, strict=True)]

    def run(self) -> Iterator[Finding]:
        """Every contract in turn; one that raises is a finding too."""
        tests: tuple[tuple[str, Callable[[], str]], ...] = (
            ("linear in the cotangent", self.linear),
            ("cotangent left alone", self.untouched),
            ("any memory layout", self.layouts),
            ("the same backward twice", self.repeatable),
            ("two uses interleaved", self.interleaved),
            ("every subset of inputs", self.subsets),
            ("Functions inside", self.inside),
        )
        if not self.live:
            return
        for name, test in tests:
            try:
                complaint = test()
            except CheckpointError:  # it recomputes with the parameters that are in the module by then
                yield Finding(name, "correct", "not judged: activation checkpointing recomputes with other tensors")
                continue
            except RuntimeError as error:
                complaint = f"backward raised {type(error).__name__}: {str(error).splitlines()[0]}"
            yield Finding(name, "wrong" if complaint else "correct", complaint or "kept")

    def linear(self) -> str:
        """B(αu + βv) = α B(u) + β B(v), for signed, tiny and huge cotangents."""
        other = self.pull(self.v)
        total = self.pull([a + b for a, b in zip(self.u, self.v, strict=True)])
        error = self._apart(total, [a + b for a, b in zip(self.reference, other, strict=True)], other)
        if error > self.exact:
            precision = "; float32 arithmetic inside a float64 path?" if error < 1e-6 else ""
            return f"B(u + v) differs from B(u) + B(v) by {error:.1e} of their size{precision}"
        coarse = self.eps > torch.finfo(torch.float32).eps
        huge, tiny = (COARSE_SCALE, 1 / COARSE_SCALE) if coarse else (HUGE, TINY)
        for factor, what in ((-1.0, "the sign changed"), (huge, "a huge"), (tiny, "a tiny"), (1 / 3, "a third of the")):
            scaled = self.pull([factor * c for c in self.u])
            error = self._apart([g / factor for g in scaled], self.reference)
            if error > self.exact:
                return f"B(c·u) differs from c·B(u) by {error:.1e} for c = {factor:.3g} ({what} cotangent)"
        return ""

    def untouched(self) -> str:
        """The cotangent, handed over or passed on inside the graph, is not modified in place."""
        given = [c.clone() for c in self.u]
        changed: list[str] = []
        with _watched(self.outputs, changed):
            self.pull(given, raw=True)
        if any(not torch.equal(a, b) for a, b in zip(given, self.u, strict=True)):
            changed.append("backward")
        return f"{changed[0]} modifies grad_output in place" if changed else ""

    def layouts(self) -> str:
        """Strided, transposed and expanded cotangents give what contiguous ones give."""
        for what, laid_out in (("strided", strided), ("transposed", transposed)):
            error = self._apart(self.pull([laid_out(c) for c in self.u]), self.reference)
            if error > self.exact:
                return f"a {what} grad_output changes the gradient by {error:.1e}: contiguous memory is assumed"
        ones = self.pull([torch.ones_like(c) for c in self.u])
        expanded = self.pull([c.new_ones(()).expand(c.shape) for c in self.u])
        error = self._apart(expanded, ones)
        return f"an expanded grad_output changes the gradient by {error:.1e}" if error > self.exact else ""

    def repeatable(self) -> str:
        """A second backward of the same graph, under other random numbers, gives the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 30, (), generator=self._generator)))
            error = self._apart(self.pull(self.u, replay=False), self.reference)
        if error > self.exact:
            return (
                f"the second backward of one graph differs by {error:.1e}: "
                "it draws random numbers (a mask drawn anew?) or changes what it saved"
            )
        return ""

    def interleaved(self) -> str:
        """forward, another forward, backward, other backward: each gives what it gives alone."""
        shifted = [self._nearby(v) for v in self.values]
        first, second = self.subject(self.values), self.subject(shifted)
        error = self._apart(self.pull(self.u, first), self.reference)
        if error > self.exact:
            return (
                f"a second use of the op before backward changes the gradient by {error:.1e}: state kept on the class"
            )
        kept, self.values = self.values, shifted
        try:
            late = self.pull(self.u, second)
            alone = self.pull(self.u, self.subject(shifted))
        finally:
            self.values = kept
        error = self._apart(late, alone)
        return (
            f"after another use of the op its gradient changes by {error:.1e}: stale state"
            if error > self.exact
            else ""
        )

    def _nearby(self, value: Tensor) -> Tensor:
        factor = 1 + 2.0**-12 * torch.rand(value.shape, generator=self._generator, dtype=torch.float64)
        return (value.detach() * factor.to(value.device)).requires_grad_()

    def subsets(self) -> str:
        """A gradient does not depend on which other gradients are asked for."""
        if len(self.values) < 2:
            return ""
        try:
            for chosen in _subsets(len(self.values)):
                for k, value in enumerate(self.values):
                    value.requires_grad_(k in chosen)
                got = self.pull(self.u, self.subject(self.values))
                error = distance(
                    [got[k] for k in chosen], [self.reference[k] for k in chosen], floor=[self.floor[k] for k in chosen]
                )
                if error > self.exact:
                    names = ", ".join(self.subject.names[k] for k in chosen)
                    return f"with only {names} requiring grad the gradient changes by {error:.1e}: needs_input_grad?"
        finally:
            for value in self.values:
                value.requires_grad_(True)
        return ""

    def inside(self) -> str:
        """Each custom Function deeper in the graph keeps the same contracts by itself."""
        outputs = self.subject(self.values)
        nodes = inner_nodes(custom_nodes(outputs), outputs)
        if not nodes:
            return ""
        for node, given in zip(nodes, arriving(nodes, lambda: self.pull(self.u, outputs)), strict=True):
            if not any(g is not None and g.is_floating_point() for g in given):
                continue
            self.subject.random.restore()
            try:
                complaint = complaint_of(node, given, self._random_like, distance, self.exact)
            except RuntimeError as error:
                complaint = f"raised {type(error).__name__}: {str(error).splitlines()[0]}"
            if complaint:
                return f"the backward of {str(node.name()).removesuffix('Backward')}: {complaint}"
        return ""


def distance(
    a: Sequence[Tensor], b: Sequence[Tensor], scale: Sequence[Tensor] = (), floor: Sequence[float] = ()
) -> float:
    """Largest over the tensors of ‖a − b‖ / (‖a‖ + ‖b‖), 1 if either is not finite where the other is.

    A difference below ``floor`` counts as none; ``scale`` adds to the denominator.
    """
    largest = 0.0
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        size = norm(x) + norm(y) + (norm(scale[k]) if scale else 0.0)
        if not bool((torch.isfinite(x) == torch.isfinite(y)).all()):
            return 1.0
        gap = norm(torch.nan_to_num(x - y, nan=0.0))
        if gap > (floor[k] if floor else 0.0) and 0 < size < float("inf"):
            largest = max(largest, gap / size)
    return largest


def _subsets(n: int) -> list[tuple[int, ...]]:
    if n <= ALL_SUBSETS:
        return [s for size in range(1, n) for s in itertools.combinations(range(n), size)]
    return [(k,) for k in range(n)] + [tuple(j for j in range(n) if j != k) for k in range(n)]


class _watched:
    """Watches every custom Function's backward in a graph for changes of the cotangent it was given."""

    def __init__(self, outputs: Sequence[Tensor], changed: list[str]) -> None:
        self._outputs, self._changed = outputs, changed
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for node in custom_nodes(self._outputs):
            given: list[Tensor | None] = []

            def before(grads: Sequence[Tensor | None], given: list[Tensor | None] = given) -> None:
                given[:] = [None if g is None else g.clone() for g in grads]

            def after(
                _: Any, grads: Sequence[Tensor | None], given: list[Tensor | None] = given, node: Any = node
            ) -> None:
                for was, now in zip(given, grads, strict=False):
                    if was is not None and now is not None and not torch.equal(was, now):
                        self._changed.append(str(node.name()))

            self._handles += [node.register_prehook(before), node.register_hook(after)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
