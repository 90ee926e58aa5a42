"""Data before it meets the model: normalisation, splits, mini-batches, augmentation."""

from torchnotes.data.augment import augment as augment
from torchnotes.data.distribution import DistributionReport as DistributionReport
from torchnotes.data.distribution import compare_distributions as compare_distributions
from torchnotes.data.input_normalizer import InputNormalizer as InputNormalizer
from torchnotes.data.minibatches import Minibatches as Minibatches
from torchnotes.data.minibatches import default_batch_size as default_batch_size
from torchnotes.data.minibatches import minibatches as minibatches
from torchnotes.data.split import Split as Split
from torchnotes.data.split import shared_samples as shared_samples
from torchnotes.data.split import train_dev_test_split as train_dev_test_split

__all__ = [
    "InputNormalizer",
    "train_dev_test_split",
    "Split",
    "shared_samples",
    "compare_distributions",
    "DistributionReport",
    "minibatches",
    "Minibatches",
    "default_batch_size",
    "augment",
]
