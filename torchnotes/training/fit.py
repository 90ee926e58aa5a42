"""The training loop."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from torchnotes._checks import check_in_range, describe
from torchnotes.data import default_batch_size
from torchnotes.training import _random
from torchnotes.training._feed import EVALUATED, dev_feed, training_feed
from torchnotes.training._loop import Loop, Options, processes
from torchnotes.training.callbacks import Callback, Run
from torchnotes.training.checkpoint import check_place
from torchnotes.training.evaluate import Loss

Data = tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]


def fit(
    model: nn.Module,
    train: Data,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    dev: Data | None = None,
    metrics: Mapping[str, Loss] | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    scheduler: Any = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    amp: torch.dtype | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    writer: Any = None,
    progress: bool | None = None,
    seed: int = 0,
) -> Run:
    """Train a model by mini-batches, so that a run that was killed and started again ends as if it had not been.

    Everything random inside (the order of the samples, dropout) is drawn from ``seed``; the global random states are
    left as found. With ``checkpoint``, the file is written after every epoch (and every ``checkpoint_every`` steps),
    whole or not at all; the same call made again goes on from it, and on one machine with the same number of threads
    ends with the same bits, wherever the first one was killed.

    What a restart can put back of a DataLoader: the order of its sampler, whether drawn from ``seed`` (a loader without
    a generator), from the loader's generator or from the sampler's own; and random transformations, in this process or
    in workers. Batches already done are read once more and thrown away. Out of reach are the random states that
    ``persistent_workers=True`` keeps in its workers, and data that differs when it is read again.

    Under ``torchrun``, with ``torch.distributed`` initialised, each process takes its share of every batch; gradients
    are averaged over all samples of the batch, so that the result is that of one process to round-off (batch norm and
    dropout aside). Only the first process evaluates, logs and writes checkpoints. A DataLoader must bring a
    ``torch.utils.data.DistributedSampler``, which repeats a few samples where they do not divide evenly.

    Args:
        model: trained in place, on the device it is on; modules end in the mode they were in.
        train: inputs and targets (x, y), each with the samples as rows; a map-style dataset of such pairs; or a
            DataLoader that gives batches of them, with its own sampler, collation, transformations and workers.
        loss: ``loss(model(x), y)``, the mean over the samples it is given.
        optimizer: of ``torchnotes.optim`` or ``torch.optim``.
        epochs: passes over the training set in all; a finished run goes on if this is raised.
        dev: the dev set, likewise, evaluated after each epoch in evaluation mode.
        metrics: further functions like ``loss``, by name, for the dev set.
        batch_size: samples in one step of the optimiser; None for the notes' rule (all below 2,000, else 64 to 512).
            A DataLoader has its own.
        shuffle: a new order each epoch (default), or the order given. A DataLoader has its own.
        scheduler: a learning-rate decay, stepped after each epoch; ``ReduceLROnPlateau`` by the dev loss, without a dev
            set by the training loss.
        accumulate: take each batch in this many pieces and add their gradients up: the memory of a piece, the step of
            the whole batch.
        clip_norm: largest norm of all gradients together; longer ones are shortened to it.
        amp: run the forward pass under autocast in this dtype; float16 with loss scaling.
        callbacks: called after each step and epoch, such as :class:`torchnotes.training.EarlyStopping`.
        checkpoint: a file to keep the run in.
        checkpoint_every: also write it every so many steps of the optimiser.
        resume: go on from ``checkpoint`` if it is there; False starts anew and overwrites it.
        writer: anything with ``add_scalar(tag, value, step)``, such as TensorBoard's ``SummaryWriter``.
        progress: show a progress bar; None shows one on a terminal.
        seed: of everything random.

    Returns:
        A :class:`torchnotes.training.Run` with the history: ``run.history[-1]["dev_loss"]``.

    Memory: beside the model, its gradients and the optimiser's state, one batch and the order of one epoch; while a
    checkpoint is written, one serialised copy of model and optimiser.

    Raises:
        TypeError: data or a loss of another kind.
        ValueError: no samples, different numbers of rows, NaN in the data, labels outside the model's classes, a target
            that would broadcast against the output, an option out of range, or a checkpoint of another model or of a
            run with other options.
        FloatingPointError: the loss is no longer finite; the last checkpoint was written before.
        CheckpointError: a checkpoint could not be written or read; the one before is intact. A directory that is
            missing or cannot be written is found before the first step.

    Source: the notes, "mini-batch gradient descent"; SPEC E3, F1 to F8.

    >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> run = fit(model, (x, 3 * x), loss=nn.functional.mse_loss, optimizer=optimizer, epochs=60, progress=False)
    >>> run.epoch, run.step, run.history[-1]["train_loss"] < 1e-6
    (60, 60, True)
    """
    _check_parts(model, loss, optimizer, scheduler, callbacks)
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        _check_count(value, name)
    for name, optional in (("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        if optional is not None:
            _check_count(optional, name)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}; any will do.")
    if clip_norm is not None:
        check_in_range(clip_norm, "clip_norm", 0.0, math.inf, low_open=True, remedy="leave it out not to clip")
    if amp not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"amp must be torch.float16, torch.bfloat16 or None, got {amp!r}; bfloat16 needs no scaling.")
    rank, world = processes()
    feed = training_feed(train, batch_size, shuffle, seed=seed, rank=rank, world=world, default=default_batch_size)
    options = Options(
        epochs=epochs,
        accumulate=accumulate,
        clip_norm=clip_norm,
        amp=amp,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    evaluated = None if dev is None else dev_feed(dev, batch_size or EVALUATED, world)
    loop = Loop(model, feed, evaluated, loss, dict(metrics or {}), optimizer, scheduler, list(callbacks), options)
    loop.writer = writer
    if options.checkpoint is not None and loop.rank == 0:
        check_place(options.checkpoint)
    with _random.seeded(seed + loop.rank), _Bar(progress, loop) as loop.bar:
        if resume:
            loop.resume()
        return loop.run_all()


class _Bar:
    """A progress bar over the epochs on the terminal, or nothing."""

    def __init__(self, progress: bool | None, loop: Loop) -> None:
        self.shown = (sys.stderr.isatty() if progress is None else progress) and loop.rank == 0
        self.epochs = loop.options.epochs

    def __enter__(self) -> Any:
        if not self.shown:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.live = Progress(*columns, console=Console(stderr=True))
        self.live.start()
        task = self.live.add_task("training", total=self.epochs)

        def update(epoch: int, text: str) -> None:
            self.live.update(task, completed=epoch, description=text)

        return update

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.live.stop()


def _check_parts(
    model: object, loss: object, optimizer: object, scheduler: object, callbacks: Iterable[object]
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}; pass the network.")
    if not callable(loss):
        raise TypeError(f"loss must be a function of output and target, got {describe(loss)}; try F.cross_entropy.")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {describe(optimizer)}; make one first.")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer must take its step from the gradients, got {type(optimizer).__name__}, which evaluates the "
            "loss several times a step; write a loop of your own for it."
        )
    ours = {id(param) for param in model.parameters()}
    if not any(id(param) in ours for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(
            "optimizer must hold parameters of model, got one that holds none of them; make it from "
            "model.parameters() after the model is on its device."
        )
    if scheduler is not None and not (hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")):
        raise TypeError(
            f"scheduler must be a learning-rate scheduler, got {describe(scheduler)}; leave it out for none."
        )
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks must be torchnotes.training.Callback objects, got {describe(callback)}; subclass it."
            )


def _check_count(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}; it is a number of whole things.")


__all__ = ["fit"]
