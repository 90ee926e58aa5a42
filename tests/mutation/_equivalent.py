"""Mutants that no test can tell from the original, each with the reason. Filled by reading every survivor."""

from __future__ import annotations

# file → {what was changed: why it changes nothing that a caller could see}
# ruff: noqa: E501
EQUIVALENT: dict[str, dict[str, str]] = {
    "_activation": {
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
        "_PIECE: 1 << 18 → 1 >> 18": "the products are then summed sample by sample: the same sum in smaller pieces",
        "_channel_dot: u.dim() == 2 → u.dim() != 2": "both branches form the same sum, one of them piece by piece",
        "_channel_dot: _PIECE * len(u) // u.numel() → _PIECE * len(u) * u.numel()": "the same sum in one piece",
        "_affine: centred.dim() > 2 → centred.dim() >= 2": "both forms are scale · centred + shift, the other is slower for a matrix",
        "backward: grad_mean is not None or grad_var is not None → grad_mean is not None and grad_var is not None": "whatever the backward makes of μ it makes of σ² too, so that gradients arrive at both or at neither",
        "backward: 5 → 6": "autograd takes one more None for an argument that is not there",
        "batch_norm: running_mean is None or running_var is None → running_mean is None and running_var is None": "one without the other has been refused before",
    },
    "cross_entropy": {
        "_NO_CLASS: -2251055966735099400 → 2251055966735099400": "another index that no class has",
        "forward: 0 → 1": "what is filled in is multiplied by the floor, which is 0 for an ignored sample",
    },
    "kernels/random_mask": {
        "_FEW: 8 → 9": "it says from which size on the other of two generators with the same law is quicker",
        "_SMALL: 12 → 13": "it says from which size on the other form of the same product is quicker",
        "_lanes: -1 → 1": "the words have one axis, so the new last axis is number 1",
        "scale_kept: True → False": "the three tensors have one size and are split alike; nothing for `strict` to refuse",
    },
}
