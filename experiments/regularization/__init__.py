"""Regularisation: none, L2, L1, more images, early stopping and dropout compared on few digits.

    python -m experiments.regularization

1. A net far too large for 150 digits, trained with each remedy, once on right labels and once with a fifth of the
   training labels wrong, so that fitting them all is a fault. The strength of each remedy is chosen on dev images, the
   result judged on test images: errors, the norm of the weights, and how many of them are next to nothing.
2. J with and without the penalty's term: which of the two must fall at every step.
3. Early stopping: where the dev cost is least, and the weights kept.

Source: the notes, "regularisation" and "other regularisation methods"; SPEC A14, E4, F8, F9, E6.
"""
