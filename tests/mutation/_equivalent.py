"""Mutants that no test can tell from the original, each with the reason. Filled by reading every survivor."""

from __future__ import annotations

# file → {what was changed: why it changes nothing that a caller could see}
# ruff: noqa: E501
EQUIVALENT: dict[str, dict[str, str]] = {
    "_activation": {
        "_PIECE: 1 → 2": "the same operations on pieces of another size",
        "_PIECE: 17 → 18": "the same operations on pieces of another size",
        "in_pieces: tensors[0].numel() <= _PIECE → tensors[0].numel() < _PIECE": "tensors of just that size are then cut into one piece",
        "in_pieces: True → False": "the tensors have one size and are cut alike; nothing for `strict` to refuse",
        "ACTIVATIONS: True → False": "the identity has no slope to compute, so `through` returns before it asks whether "
        "the slope depends on the scale",
        "ACTIVATIONS: True → False (occurrence 3)": "ReLU's slope is sign(y); y / scale, computed in vain, has the sign "
        "of y, since it is g(z) again and cannot underflow",
        "ACTIVATIONS: True → False (occurrence 5)": "leaky ReLU's slope depends on the sign of y alone, which y / scale, "
        "computed in vain, shares",
        "_leaky_slope: alpha <= 1 → alpha < 1": "at α = 1 the other branch chooses between 1 and α, which are the same",
        "through: grad_y * scale → grad_y / scale": "it is not reached: the identity needs the mask wherever there is a "
        "scale, so there is one",
    },
    "leaky_relu": {
        "backward: 0 <= alpha <= 1 → 0 < alpha <= 1": "at α = 0 the other branch gives ȳ above zero and ȳ · 0 elsewhere, which is the same product",
    },
    "_network": {
        "forward: True → False": "weights, biases and masks come in threes from the only caller, so the three slices "
        "have one length and nothing is there for `strict` to refuse",
        "setup_context: True → False": "one mask a layer comes from the only caller; nothing for `strict` to refuse",
        "setup_context: False → True": "zeros then come in for the outputs nobody used; adding them changes no gradient",
        "backward: 1 → 2 (occurrence 5)": "the slice of the outputs takes in one more, at an index that is never read",
        "backward: 1 → 2 (occurrence 7)": "the slice of the weights takes in one more, at an index that is never read",
        "backward: 2 → 3 (occurrence 2)": "the slice of the weights takes in more, at indices that are never read",
    },
    "batch_norm": {
        "batch_norm: running_mean is None or running_var is None → running_mean is None and running_var is None": "one without the other has been refused before",
        "batch_norm: 0 → 1 (occurrence 2)": "of no sample of no channel there is no element, by either shape, and nothing that has one for each channel may have any",
        "batch_norm: input.new_zeros(shape) → input.new_ones(shape)": "it is the mean of an empty batch: no element has it taken off, and the sums over none are 0",
        "batch_norm: input.new_ones(shape) → input.new_zeros(shape)": "it is the variance of an empty batch: no element is scaled by it, and r is finite, since ε > 0 in training",
        "batch_norm: 1 → 2 (occurrence 2)": "the mean and the variance of an empty batch are then one number each in place of C equal ones, which broadcasts to the same",
        "forward: running_mean is not None and running_var is not None → running_mean is not None or running_var is not None": "one without the other has been refused before",
        "backward: grad_mean is None and grad_var is None → grad_mean is None or grad_var is None": "neither comes alone: wherever z − μ is used its result is multiplied by r, so what is differentiated again goes back to both",
        "backward: 5 → 6": "autograd drops what is returned beyond the arguments of forward, where it is None",
        "backward: 7 → 8": "autograd drops what is returned beyond the arguments of forward, where it is None",
    },
    "_channels": {
        "moments: 0.0 → 1.0": "it is the weight of the batch in running statistics, and none are given",
        "affine: factor is None or g is None → factor is None and g is None": "the two come together or not at all",
        "affine: factor is not None and part is not None → factor is not None or part is not None": "the two come together or not at all",
        "mean_square: True → False": "one row was made for each piece; nothing for `strict` to refuse",
        "sums: True → False": "g has the shape of x and is split alike; nothing for `strict` to refuse",
        "affine: True → False": "g and the result have the shape of x and are split alike; nothing for `strict` to refuse",
    },
    "cross_entropy": {
        "_MINUS_ONES: 1 → 2": "as many columns are read as the index has, which is one",
        "_minus_one_each: 1 → 2": "as many columns are read as the index has, which is one",
        "_NO_CLASS: -2251055966735099400 → 2251055966735099400": "another index that no class has",
        "_NO_CLASS: 2251055966735099400 → 2251055966735099401": "another index that no class has",
        "forward: 0 → 1": "what stands there in place of a NaN is multiplied by the floor of an ignored sample, which is 0",
        "backward: 6 → 7": "autograd drops what is returned beyond the arguments of forward, where it is None",
    },
    "kernels/random_mask": {
        "_DRAWN: 1 → 2": "the same words in the same order, more of them at a time",
        "_DRAWN: 15 → 16": "the same words in the same order, more of them at a time",
        "_BLOCK: 1 → 2": "the same operations on pieces of another size",
        "_BLOCK: 21 → 22": "the same operations on pieces of another size",
        "_SMALL: 1 → 2": "it says from which size on the other form of the same product is quicker",
        "_SMALL: 12 → 13": "it says from which size on the other form of the same product is quicker",
        "keep_mask: size <= _FEW → size < _FEW": "it says from which size on the other of two generators with the same law is quicker",
        "_lanes: -1 → 1": "the words have one axis, and the new one after it is the last either way",
        "scale_kept: x.numel() < _SMALL → x.numel() <= _SMALL": "it says from which size on the other form of the same product is quicker",
        "scale_kept: True → False": "the three have one size and are cut alike; nothing for `strict` to refuse",
    },
}
