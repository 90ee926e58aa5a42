"""More images from the ones there are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchnotes._checks import check_floating, check_generator, check_in_range


def augment(
    images: Tensor,
    *,
    flip: float = 0.5,
    crop: float = 0.1,
    rotation: float = 10.0,
    distortion: float = 0.02,
    padding: str = "zeros",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Flip, crop, rotate and slightly distort a batch of images, each in its own way; labels stay what they were.

    Per image: a horizontal flip (never a vertical one: an upside-down cat is no usual cat); then one resampling that
    cuts out a window of 1 − crop to 1 of the image at a random place and enlarges it, turns it by up to ±rotation, and
    moves its points by a smooth random field. All of it runs on the batch's device, for all images at once.

    PyTorch's own ``affine_grid`` and ``grid_sample`` do the work; no library of transformations was found to fit.
    torchvision's draw one transformation for a whole batch, take no generator, and run with one release of torch only;
    kornia's change each image by itself on its device, but take no generator either and resample once per
    transformation, which blurs (a pipeline of its flip, crop, rotation and elastic distortion took 3.3 times as long on
    256 images of 32 × 32). Where more is wanted than the four changes of the notes, use one of them: both take the same
    tensors.

    Args:
        images: (m, channels, h, w), floating point.
        flip: probability of a flip; 0 for digits and letters.
        crop: largest part of the height and width cut away, in [0, 1).
        rotation: largest angle in degrees.
        distortion: largest displacement of a point, as a part of the image's height and width.
        padding: what lies outside the image: ``"zeros"``, ``"border"`` or ``"reflection"``.
        generator: where the randomness comes from, on the images' device; None for PyTorch's global one.

    Returns:
        New images of the same shape, dtype and device. With only ``flip`` the pixels are exact copies.

    Memory: a sampling grid of 2 numbers a pixel, and the result.

    Raises:
        TypeError: images that are not floating point.
        ValueError: images of other than four axes, or an amount out of range.

    Source: the notes, "other regularisation methods" (data augmentation); SPEC E4.

    >>> image = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> augment(image, flip=1.0, crop=0.0, rotation=0.0, distortion=0.0)
    tensor([[[[3., 2., 1.]]]])
    """
    check_floating(images, "images")
    if images.dim() != 4:
        raise ValueError(
            f"images must have shape (m, channels, h, w), got {tuple(images.shape)}; "
            "add the missing axis with unsqueeze."
        )
    check_in_range(flip, "flip", 0.0, 1.0, remedy="it is the probability of a flip")
    check_in_range(crop, "crop", 0.0, 1.0, high_open=True, remedy="it is the part of the side that may be cut away")
    check_in_range(rotation, "rotation", 0.0, 180.0, remedy="it is the largest angle in degrees")
    check_in_range(distortion, "distortion", 0.0, 0.5, remedy="it is a part of the image's side; 0.02 is slight")
    if padding not in ("zeros", "border", "reflection"):
        raise ValueError(f"padding must be 'zeros', 'border' or 'reflection', got {padding!r}; pick one.")
    check_generator(generator, images.device)
    if images.numel() == 0:
        return images.clone()

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=generator, device=images.device) * (high - low) + low

    m, _, height, width = images.shape
    result = images
    if flip > 0:
        flipped = uniform(m, low=0.0) < flip
        result = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if crop > 0 or rotation > 0 or distortion > 0:
        angle = uniform(m) * math.radians(rotation)
        kept = 1 - uniform(m, low=0.0) * crop  # side of the window, as a part of the image's
        x_shift, y_shift = uniform(m) * (1 - kept), uniform(m) * (1 - kept)  # so that the window stays inside
        cos, sin = kept * angle.cos(), kept * angle.sin()
        # Where each output point (x, y, 1) is read from, in [-1, 1]²; the aspect keeps a rotation rigid.
        rows = [cos, -sin * height / width, x_shift, sin * width / height, cos, y_shift]
        theta = torch.stack(rows, dim=1).reshape(m, 2, 3)
        grid = F.affine_grid(theta, [m, 1, height, width], align_corners=False)
        if distortion > 0:
            field = uniform(m, 2, 4, 4) * 2 * distortion  # the grid's unit is half a side
            smooth = F.interpolate(field, (height, width), mode="bilinear", align_corners=True)
            grid = grid + smooth.permute(0, 2, 3, 1)
        result = F.grid_sample(result, grid.to(images.dtype), "bilinear", padding, align_corners=False)
    return result.clone() if result is images else result
