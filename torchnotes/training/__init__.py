"""Training: the loop, early stopping, checks of the cost, diagnosis of a fit, search for hyperparameters."""

from torchnotes.training.callbacks import Callback as Callback
from torchnotes.training.callbacks import Run as Run
from torchnotes.training.check_monotonic import MonotonicReport as MonotonicReport
from torchnotes.training.check_monotonic import check_monotonic as check_monotonic
from torchnotes.training.checkpoint import CheckpointError as CheckpointError
from torchnotes.training.checkpoint import load_checkpoint as load_checkpoint
from torchnotes.training.checkpoint import save_checkpoint as save_checkpoint
from torchnotes.training.diagnose_fit import FitDiagnosis as FitDiagnosis
from torchnotes.training.diagnose_fit import diagnose_fit as diagnose_fit
from torchnotes.training.early_stopping import EarlyStopping as EarlyStopping
from torchnotes.training.evaluate import evaluate as evaluate
from torchnotes.training.evaluate import predict as predict
from torchnotes.training.fit import fit as fit
from torchnotes.training.search import ReportTo as ReportTo
from torchnotes.training.search import SearchResult as SearchResult
from torchnotes.training.search import Trial as Trial
from torchnotes.training.search import TrialRecord as TrialRecord
from torchnotes.training.search import search as search
from torchnotes.training.space import Choice as Choice
from torchnotes.training.space import Integer as Integer
from torchnotes.training.space import LogUniform as LogUniform
from torchnotes.training.space import OneMinusLog as OneMinusLog
from torchnotes.training.space import Uniform as Uniform

__all__ = [
    "fit",
    "Run",
    "Callback",
    "EarlyStopping",
    "evaluate",
    "predict",
    "check_monotonic",
    "MonotonicReport",
    "diagnose_fit",
    "FitDiagnosis",
    "search",
    "SearchResult",
    "ReportTo",
    "Trial",
    "TrialRecord",
    "LogUniform",
    "OneMinusLog",
    "Uniform",
    "Integer",
    "Choice",
    "save_checkpoint",
    "load_checkpoint",
    "CheckpointError",
]
