"""Initialisation: the notes' schemes for one weight, and a whole network initialised by what follows each layer."""

from torchnotes.init.calibration import CalibratedLayer as CalibratedLayer
from torchnotes.init.calibration import CalibrationReport as CalibrationReport
from torchnotes.init.calibration import calibrate_ as calibrate_
from torchnotes.init.fills import he_normal_ as he_normal_
from torchnotes.init.fills import lecun_normal_ as lecun_normal_
from torchnotes.init.fills import small_normal_ as small_normal_
from torchnotes.init.fills import xavier_normal_ as xavier_normal_
from torchnotes.init.fills import zeros_ as zeros_
from torchnotes.init.network import AppliedInit as AppliedInit
from torchnotes.init.network import InitReport as InitReport
from torchnotes.init.network import initialize_ as initialize_

__all__ = [
    "zeros_",
    "small_normal_",
    "lecun_normal_",
    "he_normal_",
    "xavier_normal_",
    "initialize_",
    "calibrate_",
    "InitReport",
    "AppliedInit",
    "CalibrationReport",
    "CalibratedLayer",
]
