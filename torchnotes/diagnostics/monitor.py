"""``SignalMonitor``: the probe's measurements over training, taken from the passes that training makes anyway."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchnotes.diagnostics import distributed
from torchnotes.diagnostics.alerts import Alert
from torchnotes.diagnostics.delivery import Delivery
from torchnotes.diagnostics.history import Sink, StepRecord
from torchnotes.diagnostics.monitor_arguments import can_compile, check_arguments
from torchnotes.diagnostics.monitor_step import MeasuredStep, loss_scale, numbers
from torchnotes.diagnostics.report import SignalReport, make_report
from torchnotes.diagnostics.taking import StepTaker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class SignalMonitor:
    """Log every layer's activations, gradients, weights and updates while a model trains.

    Attach it and train as before: steps are counted by the optimiser's own (any ``torch.optim.Optimizer`` that holds
    a parameter of the model), and every ``every``-th of them, the first included, is measured. Training computes bit
    for bit what it computes without. The modules carry hooks on measured steps only, when each tensor is read and one
    small copy brings the numbers of the whole model to the host.

    What the model calls as functions in its forward (``F.relu(...)``, ``F.linear(x, self.weight)``, ``x @ self.up``,
    ``F.layer_norm(...)``) has the rows that :func:`probe` gives it. A model that calls none on its first full step is
    looked at for them again on its 10th, 100th, 1000th, … only; one with compiled parts not at all, without ``eager``.

    ``monitor.step(loss)`` hands in the loss, and counts the steps where weights are updated without an optimiser.
    Under gradient accumulation the last pass before the update is measured. Evaluation under ``torch.no_grad`` is
    not.

    Whatever goes wrong in the monitor, a full disk say, training goes on: the monitor warns once and steps aside.

    Args:
        model: any module.
        log_dir: TensorBoard's log directory, or an open ``SummaryWriter``, which is then left open; None for none.
        every: steps from one measurement to the next.
        detail: measured steps from one full measurement to the next. On those between only the weight layers are
            looked at: rms and non-finite values of outputs, gradients, weights and their gradients.
        eager: run the measured steps of a compiled model uncompiled. No hook runs inside compiled code; without this
            a compiled model is trained as it is, and the monitor says that it saw nothing. (Compiled and uncompiled
            code may differ by rounding.)
        scaler: the ``GradScaler`` of mixed-precision training; gradients are then reported unscaled.
        sinks: also given each record: functions, :class:`JsonLines`, ``list.append``.
        window: logged steps in a row after which a unit that was always zero counts as dead.
        histograms: whether to write histograms too.
        compiled: measure what lies in the CPU's memory with code compiled by numba (`pip install 'torchnotes[fast]'`),
            which costs less than half; None for where numba is installed. Compiling takes seconds once; it is kept.
        first_group: number of the first group of TensorBoard's tags.
        hparams: entered in TensorBoard's HParams table on closing.

    Attributes:
        compiled: whether compiled code measures.

    Raises:
        TypeError, ValueError: an argument that cannot be right; later troubles only warn.
        ModuleNotFoundError: ``compiled=True`` without numba.

    Source: SPEC C6.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> records = []
    >>> with SignalMonitor(net, None, every=2, sinks=[records.append]) as monitor:
    ...     for _ in range(5):
    ...         loss = net(torch.ones(3, 4)).square().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         monitor.step(loss)
    >>> [record.step for record in records]
    [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        log_dir: str | Path | SummaryWriter | None,
        *,
        every: int = 50,
        detail: int = 1,
        eager: bool = False,
        scaler: Any = None,
        sinks: Iterable[Sink] = (),
        window: int = 10,
        histograms: bool = True,
        compiled: bool | None = None,
        first_group: int = 1,
        hparams: Mapping[str, str | float] | None = None,
    ) -> None:
        check_arguments(model, every=every, window=window, detail=detail)
        spread = distributed.is_replicated(model)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.every = every
        self.steps = 0
        self.aside = False
        self.compiled = can_compile(compiled)
        self._eager = eager
        self._scaler = scaler
        self._detail = detail
        self._histograms = histograms
        board: Any = None
        if log_dir is not None and distributed.is_writer():
            from torchnotes.diagnostics.tensorboard_sink import TensorBoardSink

            board = TensorBoardSink(log_dir, first_group=first_group, hparams=hparams)
        self._delivery = Delivery(board, list(sinks) if distributed.is_writer() else [])
        self._taker = StepTaker(self.model, window, self._step_aside, compiled=self.compiled, eager=eager)
        self._parameters = {id(parameter) for parameter in self.model.parameters()}
        self._leader: int | None = None  # the optimiser that counts the steps
        self._pending: MeasuredStep | None = None
        self._loss: Tensor | float | None = None
        self._losses: list[tuple[int, Tensor | float]] = []  # of every step since the last record: is each finite?
        self._spread = distributed.world_size() > 1 and spread
        self._closed = False
        self._warned = False
        self._fresh = False  # whether a pass has been made since the last update
        self._in_pool = False
        self._handles: list[Any] = []
        self._attach()

    def __enter__(self) -> SignalMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def report(self) -> SignalReport | None:
        """The report of the last step that was measured in full, with its verdict; None before the first."""
        self._safely(self._deliver)
        self._safely(self._delivery.catch_up)
        record = self._delivery.last_full
        return None if record is None else make_report(record.layers, loss=record.loss)

    @property
    def last(self) -> StepRecord | None:
        """The record that was delivered last; None before the first."""
        self._safely(self._delivery.catch_up)
        return self._delivery.last

    @property
    def alerts(self) -> list[Alert]:
        """What was noticed so far: non-finite values, a loss at chance level, dead units, updates out of range."""
        self._safely(self._delivery.catch_up)
        return list(self._delivery.watch.alerts)

    def step(self, loss: Tensor | float | None = None) -> None:
        """End a training step by hand, or only hand in its loss where an optimiser counts the steps.

        Args:
            loss: the step's loss, with or without its graph.
        """
        if self.aside or self._closed:
            return
        value = loss.detach() if isinstance(loss, Tensor) else loss
        if self._leader is None:
            self._loss = value
            self._note_loss(self.steps, value)
            self._safely(self._measure, None)
            self._safely(self._pool)
            self._safely(self._count)
        elif self._fresh:  # called before the update
            self._note_loss(self.steps, value)
            self._loss = value
        else:
            self._note_loss(self.steps - 1, value)
            if self._pending is not None and self._pending.step == self.steps - 1:
                self._pending.loss = value
                self._safely(self._ship)

    def _note_loss(self, step: int, loss: Tensor | float | None) -> None:
        """Keep each step's loss until the next record; on another device nothing waits for it."""
        if loss is not None:
            self._losses.append((step, loss))
            if len(self._losses) > 1000:
                self._safely(self._check_losses)

    def _check_losses(self) -> None:
        values = numbers([loss for _, loss in self._losses])
        for (step, _), value in zip(self._losses, values, strict=True):
            if not math.isfinite(value):
                self._delivery.watch.bad_loss(step)
        self._losses.clear()

    def close(self) -> None:
        """Take every hook off, write what is left and close the log."""
        if self._closed:
            return
        self._safely(self._deliver)
        self._safely(self._check_losses)
        self._detach()
        self._closed = True
        for action in self._delivery.closing(self._taker.units):
            self._safely(action)

    @property
    def _due(self) -> bool:
        return self.steps % self.every == 0

    @property
    def _full(self) -> bool:
        return self.steps // self.every % self._detail == 0

    def _attach(self) -> None:
        self._handles = [
            self.model.register_forward_pre_hook(self._before_pass),
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]
        self._arm(True)

    def _detach(self, keep: int = 0) -> None:
        self._arm(False)
        self._taker.detach()
        while len(self._handles) > keep:
            self._handles.pop(0).remove()

    def _leave_the_ranks(self) -> None:
        """Tell the other ranks, at the step where they wait for this one, that it has stepped aside."""
        if self._due and self._handles:
            self._detach()
            distributed.over_ranks(None)
        self.steps += 1

    def _before_pass(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if not self._fresh and self._pending is not None:
            self._safely(self._ship)  # no loss was handed in since the update
        self._fresh = True
        if self._due and not self._taker.is_fresh:
            self._begin()

    def _begin(self) -> None:
        count = self.steps // self.every // self._detail
        self._taker.begin(self._full, self._histograms and self._delivery.wants_histograms(count))

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if self.aside or not self._leads(optimizer) or not self._due:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._safely(self._measure, optimizer)
            return None

        def measured() -> Any:  # the pass is made inside the optimiser's step
            value = closure()
            self._safely(self._measure, optimizer)
            return value

        if "closure" in kwargs:
            return args, {**kwargs, "closure": measured}
        return (args[0], measured, *args[2:]), kwargs

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._leads(optimizer):
            return
        if self.aside:
            self._leave_the_ranks()
            return
        self._safely(self._finish_update)
        self._safely(self._pool)
        self._safely(self._count)

    def _leads(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the optimiser that counts: the first that was met holding a parameter of the model."""
        if self._leader is None and any(
            id(parameter) in self._parameters for entry in optimizer.param_groups for parameter in entry["params"]
        ):
            self._leader = id(optimizer)
            if self.steps == 1 and self._pending is not None:
                # step(loss) came before the very first update and was taken for the end of the step: undo it.
                self.steps, self._pending.weight_scale = 0, self._pending.scale
        return self._leader == id(optimizer)

    def _measure(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Take the weights and their gradients, just before the update."""
        if self._pending is not None and self._pending.step == self.steps:
            return
        self._deliver()
        if not self._due:
            return
        scale = loss_scale(self._scaler)
        # GradScaler unscales before the optimiser's step, except for fused optimisers: those are told the scale.
        left = scale if getattr(optimizer, "grad_scale", None) is not None else 1.0
        if not self._taker.saw_something:
            self._warn_nothing_ran()
            return
        self._pending = self._taker.take(
            self.steps,
            scale=scale,
            weight_scale=left,
            learning_rate=None if optimizer is None else float(optimizer.param_groups[0]["lr"]),
            loss=self._loss,
        )
        self._loss = None

    def _finish_update(self) -> None:
        pending = self._pending
        if pending is None or pending.weights is not None:
            return
        self._taker.finish(pending)
        if pending.loss is not None:
            self._ship()

    def _ship(self) -> None:
        """Send the numbers on their way to the host, with the losses since the last measured step."""
        pending = self._pending
        if pending is None or pending.shipment.shipped:
            return
        self._finish_update()  # where steps are counted by hand, exactly one update has been made since
        if not pending.shipment.shipped:
            pending.losses, self._losses = self._losses, []
            pending.ship()

    def _pool(self) -> None:
        """Bring this step's records together from all ranks: at the same point of the same step on each of them."""
        if not self._spread or not self._due:
            return
        layers = None
        if self._pending is not None and self._pending.step == self.steps:
            layers = self._pending.records()
        self._in_pool = True
        pooled = distributed.over_ranks(layers)
        self._in_pool = False
        if pooled is None:
            self._in_pool = True  # every rank leaves here: nobody will wait for this one again
            raise RuntimeError("another rank has stepped aside, or the ranks did not run the same modules")
        assert self._pending is not None
        self._pending.layers = pooled

    def _count(self) -> None:
        self.steps += 1
        self._loss, self._fresh = None, False
        self._arm(self._due)

    def _arm(self, due: bool) -> None:
        """Record from here on, or stop."""
        if due:
            self._taker.attach(self._full)
            self._begin()
        else:
            self._taker.detach()
        if self._eager:
            torch.compiler.set_stance("force_eager" if due else "default")

    def _deliver(self) -> None:
        """Pass on the last measured step, a step later, to be brought to the host, the log and the sinks."""
        pending = self._pending
        if pending is None:
            return
        self._ship()
        self._pending = None
        self._delivery(pending)

    def _safely(self, action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            self._step_aside(error)

    def _step_aside(self, error: Exception) -> None:
        if self.aside:
            return
        self.aside = True
        self._pending = None
        # The other ranks will wait for this one at the next measured step: the optimiser's hooks stay on until then.
        self._detach(keep=2 if self._spread and not self._in_pool else 0)
        warnings.warn(
            f"SignalMonitor stopped at training step {self.steps}, training goes on without it: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _warn_nothing_ran(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"SignalMonitor saw no module of {type(self.model).__name__} run in training step {self.steps}. "
            "If it is compiled (torch.compile), hooks do not run in compiled code: run the measured steps "
            "uncompiled with SignalMonitor(..., eager=True). If its parts are called by .forward, call them instead.",
            RuntimeWarning,
            stacklevel=2,
        )
