"""Hand-derived PyTorch layers, a gradient checker, and a probe that says why a deep net will not train."""

__version__ = "0.1.0"
