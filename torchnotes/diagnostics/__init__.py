"""Why a deep net will not train: the scale of every layer's activations and gradients, a verdict and a cure."""

from torchnotes.diagnostics.growth import growth_per_layer as growth_per_layer
from torchnotes.diagnostics.records import LayerSignal as LayerSignal
from torchnotes.diagnostics.records import Moments as Moments
from torchnotes.diagnostics.records import Verdict as Verdict

__all__ = ["LayerSignal", "Moments", "Verdict", "growth_per_layer"]
