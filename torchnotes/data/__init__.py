"""Data before it meets the model: normalisation, splits, mini-batches, augmentation."""

from torchnotes.data.input_normalizer import InputNormalizer as InputNormalizer

__all__ = ["InputNormalizer"]
