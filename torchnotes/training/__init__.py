"""Training: the loop, early stopping, checks of the cost, diagnosis of a fit, search for hyperparameters."""

from torchnotes.training.callbacks import Callback as Callback
from torchnotes.training.callbacks import Run as Run
from torchnotes.training.check_monotonic import MonotonicReport as MonotonicReport
from torchnotes.training.check_monotonic import check_monotonic as check_monotonic
from torchnotes.training.checkpoint import CheckpointError as CheckpointError
from torchnotes.training.checkpoint import load_checkpoint as load_checkpoint
from torchnotes.training.checkpoint import save_checkpoint as save_checkpoint
from torchnotes.training.early_stopping import EarlyStopping as EarlyStopping
from torchnotes.training.evaluate import evaluate as evaluate
from torchnotes.training.evaluate import predict as predict
from torchnotes.training.fit import fit as fit

__all__ = [
    "fit",
    "Run",
    "Callback",
    "EarlyStopping",
    "evaluate",
    "predict",
    "check_monotonic",
    "MonotonicReport",
    "save_checkpoint",
    "load_checkpoint",
    "CheckpointError",
]
