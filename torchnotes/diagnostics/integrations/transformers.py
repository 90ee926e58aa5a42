"""A callback for Hugging Face's ``Trainer``; importing this file imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from torchnotes.diagnostics.monitor import SignalMonitor
from torchnotes.diagnostics.report import SignalReport


class SignalMonitorCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Attach a :class:`SignalMonitor` to the model while it is trained.

    ``Trainer(..., callbacks=[SignalMonitorCallback(every=50)])``. Logs go to ``signal`` in the trainer's output
    directory, or to ``log_dir``. The trainer does not hand its callbacks the loss of a step, so records have none.

    Args:
        log_dir: TensorBoard's log directory; ``output_dir/signal`` where None.
        **options: as for :class:`SignalMonitor`.

    Attributes:
        monitor: the monitor, from the start of training on.
    """

    def __init__(self, log_dir: str | None = None, **options: Any) -> None:
        self.log_dir = log_dir
        self.options = options
        self.monitor: SignalMonitor | None = None

    @property
    def report(self) -> SignalReport | None:
        """The report of the last logged step."""
        return None if self.monitor is None else self.monitor.report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach."""
        folder = self.log_dir or str(Path(args.output_dir or ".") / "signal")
        self.monitor = SignalMonitor(kwargs["model"], folder, **self.options)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left and take the hooks off."""
        if self.monitor is not None:
            self.monitor.close()
