"""A callback for Lightning's ``Trainer``; importing this file imports Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from torchnotes.diagnostics.monitor import SignalMonitor
from torchnotes.diagnostics.report import SignalReport


class SignalMonitorCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Attach a :class:`SignalMonitor` to the module while it is fitted.

    ``Trainer(callbacks=[SignalMonitorCallback(every=50)])``. Logs go beside those of the trainer's own logger, or to
    ``log_dir``. The scaler of mixed precision is found in the trainer, so gradients are reported unscaled.

    Args:
        log_dir: TensorBoard's log directory; the trainer's where None.
        **options: as for :class:`SignalMonitor`.

    Attributes:
        monitor: the monitor, from the start of fitting on.
    """

    def __init__(self, log_dir: str | None = None, **options: Any) -> None:
        super().__init__()
        self.log_dir = log_dir
        self.options = options
        self.monitor: SignalMonitor | None = None
        self._updates = 0

    @property
    def report(self) -> SignalReport | None:
        """The report of the last logged step."""
        return None if self.monitor is None else self.monitor.report

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        folder = self.log_dir or trainer.log_dir or trainer.default_root_dir
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.monitor = SignalMonitor(pl_module, folder, scaler=scaler, **self.options)
        self._updates = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand in the loss; under gradient accumulation, that of the batch that ended in an update."""
        if self.monitor is None or trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.monitor.step(loss)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off, whatever stopped the training."""
        if self.monitor is not None:
            self.monitor.close()
