"""The steps of a training run, and all of its state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from torchnotes._checks import check_same_shape, describe
from torchnotes.training import _random
from torchnotes.training._data import label_error
from torchnotes.training._feed import Feed, Piece
from torchnotes.training.callbacks import Callback, Run
from torchnotes.training.checkpoint import load_checkpoint, remove_unfinished, save_checkpoint
from torchnotes.training.evaluate import Loss, mode


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) without ``torch.distributed``."""
    parallel = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)


@dataclass(frozen=True)
class Options:
    """How to train, as :func:`torchnotes.training.fit` takes it."""

    epochs: int
    accumulate: int
    clip_norm: float | None
    amp: torch.dtype | None
    checkpoint: Path | None
    checkpoint_every: int | None
    seed: int


class Loop:
    """One run. All that changes while it runs is in :meth:`state`, so that a restart is exact."""

    def __init__(
        self,
        model: nn.Module,
        train: Feed,
        dev: Feed | None,
        loss: Loss,
        metrics: dict[str, Loss],
        optimizer: Optimizer,
        scheduler: Any,
        callbacks: list[Callback],
        options: Options,
    ) -> None:
        self.rank, self.world = processes()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.net: nn.Module = model
        if self.world > 1 and not isinstance(model, DistributedDataParallel):
            self.net = DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        self.train, self.dev, self.loss, self.metrics = train, dev, loss, metrics
        self.optimizer, self.scheduler, self.callbacks, self.options = optimizer, scheduler, callbacks, options
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == torch.float16)
        self.run = Run(self.model, optimizer)
        self.batch = 0  # batches done in this epoch
        self.rows = 0  # samples of this process done in this epoch
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)  # Σ loss over the samples of this epoch
        self.unchecked = {"train", "dev"}  # sets of which no output has been seen yet
        self.writer: Any = None
        self.bar: Callable[[int, str], None] | None = None

    def run_all(self) -> Run:
        """Train to the end."""
        path = self.options.checkpoint
        if path is not None and self.rank == 0:
            remove_unfinished(path)
        with mode(self.model, True):
            while self.run.epoch < self.options.epochs and not self.run.stopped:
                self._epoch()
            for callback in self.callbacks:
                callback.on_end(self.run)
        return self.run

    def _epoch(self) -> None:
        every, ended = self.options.checkpoint_every, False
        batches = self.train.epoch(self.run.epoch, self.batch, self.options.accumulate, self.device)
        while not ended and not self.run.stopped:
            pieces = next(batches, None)
            if pieces is None:
                ended = True
                break
            self._step(pieces)
            self.batch += 1
            self.run.step += 1
            for callback in self.callbacks:
                callback.on_step(self.run)
            ended = self.batch == self.train.batches
            if every and self.run.step % every == 0 and not ended:
                self._check_finite(self._everyones_total()[0])
                self.save()
        if ended:
            self._finish_epoch()
        self.save()

    def _step(self, pieces: list[Piece]) -> None:
        """One step of the optimiser over this process's share of a batch."""
        self.optimizer.zero_grad(set_to_none=True)
        for number, piece in enumerate(pieces, start=1):
            self._accumulate(piece, last=number == len(pieces))
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _accumulate(self, piece: Piece, *, last: bool) -> None:
        x, y = piece.take()
        waits = not last and isinstance(self.net, DistributedDataParallel)
        amp = torch.autocast(self.device.type, self.options.amp or torch.bfloat16, enabled=self.options.amp is not None)
        with self.net.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with amp:
                output = self.net(x)
                self._check_first(output, y, "train")
                loss = self.loss(output, y)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                raise TypeError(
                    f"loss must return the mean over its samples, a tensor of no axes, got {describe(loss)}; "
                    "use reduction='mean'."
                )
            self.scaler.scale(loss * piece.weight).backward()
        if piece.rows:
            self.total += loss.detach().double() * piece.rows
            self.rows += piece.rows

    def _check_first(self, output: Any, y: Tensor, name: str) -> None:
        """What can only be said of a set once there is an output: do the targets fit it?"""
        if name not in self.unchecked:
            return
        self.unchecked.remove(name)
        if not isinstance(output, Tensor):
            return
        if y.dtype.is_floating_point and output.shape != y.shape:
            with contextlib.suppress(RuntimeError):
                torch.broadcast_shapes(output.shape, y.shape)  # else the loss says what is wrong
                check_same_shape(output, y, output_name="the model's output", target_name=f"the target of {name}")
        if not y.dtype.is_floating_point and y.dtype != torch.bool and output.dim() == y.dim() + 1:
            feeds, classes = [feed for feed in (self.train, self.dev) if feed is not None], output.shape[1]
            known = [label for feed in feeds if (label := feed.largest_label()) is not None]
            largest = max([int(y.max()), *known])
            if largest >= classes:
                raise label_error(largest, classes)
            for feed in feeds:
                feed.expect_below(classes)

    def _finish_epoch(self) -> None:
        total, rows = self._everyones_total()
        self._check_finite(total)
        record: dict[str, float] = {
            "epoch": self.run.epoch + 1,
            "train_loss": total / rows,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
        }
        if self.dev is not None and self.rank == 0:
            record.update(self._evaluate(self.dev))
        if self.world > 1:
            shared = [record]
            dist.broadcast_object_list(shared, src=0)
            record = shared[0]
        self.run.history.append(record)
        self.run.epoch += 1
        self.batch = self.rows = 0
        self.total = torch.zeros_like(self.total)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(record.get("dev_loss", record["train_loss"]))
        elif self.scheduler is not None:
            self.scheduler.step()
        self._report(record)
        for callback in self.callbacks:
            callback.on_epoch(self.run)

    def _evaluate(self, dev: Feed) -> dict[str, float]:
        functions = {"dev_loss": self.loss, **{f"dev_{name}": metric for name, metric in self.metrics.items()}}
        totals, rows = dict.fromkeys(functions, 0.0), 0
        with mode(self.model, False), torch.no_grad():
            for x, y in dev.every(self.device):
                output = self.model(x)
                self._check_first(output, y, "dev")
                rows += len(y)
                for name, function in functions.items():
                    totals[name] += float(function(output, y)) * len(y)
        return {name: total / rows for name, total in totals.items()}

    def _report(self, record: dict[str, float]) -> None:
        if self.rank != 0:
            return
        if self.writer is not None:
            for name, value in record.items():
                if name != "epoch":
                    self.writer.add_scalar(f"training/{name}", value, self.run.epoch)
        if self.bar is not None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "epoch")
            self.bar(self.run.epoch, shown)

    def _everyones_total(self) -> tuple[float, int]:
        """The sum of the losses over all processes and its number of samples, so that all of them judge it alike."""
        total = torch.stack([self.total, torch.full_like(self.total, self.rows)])
        if self.world > 1:
            dist.all_reduce(total)
        return float(total[0]), int(total[1])

    def _check_finite(self, total: float) -> None:
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss must stay finite, got {total} in epoch {self.run.epoch + 1} by step {self.run.step}; "
                "lower the learning rate, or set clip_norm."
            )

    def _fingerprint(self) -> dict[str, Any]:
        """What a run must share with a checkpoint to go on from it."""
        options = self.options
        return {
            **self.train.options(),
            "accumulate": options.accumulate,
            "clip_norm": options.clip_norm,
            "amp": str(options.amp),
            "seed": options.seed,
            "processes": self.world,
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
            "scheduler": type(self.scheduler).__name__,
            "optimizer": type(self.optimizer).__name__,
        }

    def save(self) -> None:
        """Write the checkpoint, if one is kept; every process takes part, the first one writes."""
        if self.options.checkpoint is None:
            return
        own = {"random": _random.capture(), "feed": self.train.state(), "total": float(self.total), "rows": self.rows}
        everyones: list[Any] = [own]
        if self.world > 1:
            everyones = [None] * self.world
            dist.all_gather_object(everyones, own)
        if self.rank == 0:
            save_checkpoint(self.state(everyones), self.options.checkpoint)

    def state(self, by_process: list[Any]) -> dict[str, Any]:
        """Everything a restart needs; the last entry has one part a process."""
        return {
            "options": self._fingerprint(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "epoch": self.run.epoch,
            "step": self.run.step,
            "stopped": self.run.stopped,
            "history": self.run.history,
            "batch": self.batch,
            "by_process": by_process,
        }

    def _check_same_model(self, saved: dict[str, Any]) -> None:
        there, here = (
            {name: tuple(entry.shape) for name, entry in state.items() if isinstance(entry, Tensor)}
            for state in (saved, self.model.state_dict())
        )
        different = [
            f"{name} {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise ValueError(
                f"the checkpoint {self.options.checkpoint} must hold this model, got {', '.join(different[:3])}{more}; "
                "build the model that was saved, or use another file or resume=False."
            )

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.options.checkpoint
        found: list[Any] = [load_checkpoint(path) if path is not None and self.rank == 0 and path.exists() else None]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0)
        state = found[0]
        if state is None:
            return
        mine, theirs = self._fingerprint(), state.get("options", {})
        different = [name for name in mine if theirs.get(name) != mine[name]]
        if different:
            shown = ", ".join(f"{name} {theirs.get(name)!r} there and {mine[name]!r} here" for name in different)
            raise ValueError(
                f"the checkpoint {path} must come from a run with the same options, got {shown}; "
                "use the same, another file, or resume=False."
            )
        self._check_same_model(state["model"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.run.epoch, self.run.step, self.run.stopped = state["epoch"], state["step"], state["stopped"]
        self.run.history[:] = state["history"]
        self.batch = state["batch"]
        own = state["by_process"][self.rank]
        self.total.fill_(own["total"])
        self.rows = own["rows"]
        _random.restore(own["random"])
        self.train.load(own["feed"], self.batch)
