"""The callback under the real Hugging Face Trainer."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

transformers = pytest.importorskip("transformers", reason="transformers is not installed", exc_type=ImportError)
pytest.importorskip("accelerate", reason="the Trainer needs accelerate", exc_type=ImportError)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        scores = self.head(self.body(x))
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return {"x": torch.randn(6, generator=torch.Generator().manual_seed(index)), "labels": index % 3}


def train(callbacks, folder):
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=5,
            per_device_train_batch_size=8,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            seed=0,
        )
        transformers.Trainer(model=model, args=arguments, train_dataset=Data(), callbacks=callbacks).train()
    return model


def test_records_and_identical_training(tmp_path):
    from torchnotes.diagnostics.integrations.transformers import SignalMonitorCallback

    records = []
    callback = SignalMonitorCallback(every=2, sinks=[records.append])
    plain, watched = train([], tmp_path / "plain"), train([callback], tmp_path / "watched")
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert [record.step for record in records] == [0, 2, 4]
    assert [layer.label for layer in records[0].layers] == ["body.0", "body.1", "head"]
    assert [layer.gradient is not None for layer in records[0].layers] == [True] * 3
    assert callback.report is not None
    assert list((tmp_path / "watched" / "signal").glob("events*"))
    assert all(not module._forward_hooks for module in watched.modules())
