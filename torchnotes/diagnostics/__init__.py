"""Why a deep net will not train: the scale of every layer's activations and gradients, a verdict and a cure."""

from torchnotes.diagnostics._moments import moments as moments
from torchnotes.diagnostics.alerts import Alert as Alert
from torchnotes.diagnostics.growth import growth_per_layer as growth_per_layer
from torchnotes.diagnostics.history import JsonLines as JsonLines
from torchnotes.diagnostics.history import StepRecord as StepRecord
from torchnotes.diagnostics.monitor import SignalMonitor as SignalMonitor
from torchnotes.diagnostics.prescription import apply_prescription as apply_prescription
from torchnotes.diagnostics.prescription import prescriptions as prescriptions
from torchnotes.diagnostics.prescription_record import Prescription as Prescription
from torchnotes.diagnostics.probing import expect as expect
from torchnotes.diagnostics.probing import probe as probe
from torchnotes.diagnostics.records import Finding as Finding
from torchnotes.diagnostics.records import LayerSignal as LayerSignal
from torchnotes.diagnostics.records import Moments as Moments
from torchnotes.diagnostics.records import Verdict as Verdict
from torchnotes.diagnostics.report import SignalReport as SignalReport
from torchnotes.diagnostics.testing import UnhealthySignal as UnhealthySignal
from torchnotes.diagnostics.testing import assert_healthy as assert_healthy
from torchnotes.diagnostics.theory import Expectation as Expectation
from torchnotes.diagnostics.theory import Theory as Theory
from torchnotes.diagnostics.theory_quadrature import activation_moments as activation_moments
from torchnotes.diagnostics.verdict import judge as judge

__all__ = [
    "probe",
    "assert_healthy",
    "UnhealthySignal",
    "SignalMonitor",
    "SignalReport",
    "StepRecord",
    "Alert",
    "JsonLines",
    "LayerSignal",
    "Moments",
    "Verdict",
    "Finding",
    "judge",
    "prescriptions",
    "apply_prescription",
    "Prescription",
    "expect",
    "Theory",
    "Expectation",
    "moments",
    "activation_moments",
    "growth_per_layer",
]
