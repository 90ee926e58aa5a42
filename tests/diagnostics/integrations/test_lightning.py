"""The callback under the real Lightning."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed", exc_type=ImportError)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 6, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


class Module(lightning.LightningModule):
    """training_step calls the parts, never the module itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)
        self.losses = []

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.head(self.body(x)), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callbacks, tmp_path, **options):
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's advice on workers and loggers
        trainer = lightning.Trainer(
            max_epochs=1,
            callbacks=callbacks,
            default_root_dir=tmp_path,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **options,
        )
        trainer.fit(module, data())
    return module


def test_records_losses_and_identical_training(tmp_path):
    from torchnotes.diagnostics.integrations.lightning import SignalMonitorCallback

    records = []
    callback = SignalMonitorCallback(str(tmp_path / "signal"), every=2, sinks=[records.append])
    plain, watched = fit([], tmp_path), fit([callback], tmp_path)
    assert plain.losses == watched.losses
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert [record.step for record in records] == [0, 2, 4]
    assert [record.loss for record in records] == pytest.approx(watched.losses[::2])
    assert [layer.label for layer in records[0].layers] == ["body.0", "body.1", "head"]
    assert [layer.gradient is not None for layer in records[0].layers] == [True] * 3
    assert callback.report is not None
    assert list((tmp_path / "signal").glob("events*"))
    assert all(not module._forward_hooks for module in watched.modules())


def test_gradient_accumulation_counts_updates(tmp_path):
    from torchnotes.diagnostics.integrations.lightning import SignalMonitorCallback

    records = []
    callback = SignalMonitorCallback(str(tmp_path / "signal"), every=1, sinks=[records.append])
    fit([callback], tmp_path, accumulate_grad_batches=3)
    assert [record.step for record in records] == [0, 1]
