"""augment: each change in closed form, independence between images, ranges, errors."""

import math

import pytest
import torch

from torchnotes.data import augment

OFF = {"flip": 0.0, "crop": 0.0, "rotation": 0.0, "distortion": 0.0}


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _images(m=6, size=16, seed=0):
    return torch.rand(m, 3, size, size, generator=_seeded(seed))


def test_flip_is_horizontal_exact_and_as_frequent_as_asked():
    x = _images(400, 4)
    y = augment(x, **{**OFF, "flip": 0.3}, generator=_seeded())
    kept = (y == x).flatten(1).all(1)
    flipped = (y == x.flip(-1)).flatten(1).all(1)
    assert (kept ^ flipped).all()
    # 120 expected of 400, standard deviation 9.2
    assert abs(int(flipped.sum()) - 120) < 37


def test_nothing_asked_for_gives_a_copy():
    x = _images()
    y = augment(x, **OFF)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(33, 33), (21, 41)])
def test_rotation_keeps_the_centre_and_turns_rigidly_by_at_most_the_angle(shape):
    height, width = shape
    x = torch.zeros(300, 1, height, width)
    x[:, 0, height // 2, width // 2 + 8] = 1.0  # a point 8 pixels right of the centre
    y = augment(x, **{**OFF, "rotation": 30.0}, generator=_seeded())[:, 0]
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    mass = y.sum((1, 2))
    at_row = (y.sum(2) * rows).sum(1) / mass
    at_column = (y.sum(1) * columns).sum(1) / mass
    radius, angle = torch.hypot(at_row, at_column), torch.atan2(at_row, at_column).rad2deg()
    # bilinear interpolation moves the centre of mass of one pixel by a fraction of a pixel
    assert (radius - 8).abs().max() < 0.5
    assert angle.abs().max() <= 30.0 + 3.0
    # uniform on ±30: standard deviation 17.3
    assert angle.std() == pytest.approx(60 / math.sqrt(12), rel=0.15)


def test_crop_stays_inside_and_enlarges():
    ramp = torch.linspace(0.0, 1.0, 65).expand(200, 1, 65, 65).contiguous()  # brightness = position from left
    y = augment(ramp, **{**OFF, "crop": 0.4}, padding="border", generator=_seeded())[:, 0, 32]
    window = (y[:, -1] - y[:, 0]) * 65 / 64
    assert window.min() > 0.6 - 0.03
    assert window.max() < 1.0 + 0.03
    assert window.std() > 0.05
    left = y[:, 0]
    assert left.min() >= 0.0
    assert left.std() > 0.03


def test_distortion_is_small_and_smooth():
    ramp = torch.linspace(0.0, 1.0, 65).expand(100, 1, 65, 65).contiguous()
    y = augment(ramp, **{**OFF, "distortion": 0.05}, padding="border", generator=_seeded())
    moved = (y - ramp)[..., 4:-4, 4:-4]
    assert 0.01 < moved.abs().max() <= 0.05 * 65 / 64 + 1e-3
    assert moved.diff(dim=-2).abs().max() < 0.02


def test_each_image_has_its_own_change_and_the_seed_decides():
    x = _images(1).expand(8, -1, -1, -1).contiguous()
    y = augment(x, generator=_seeded(3))
    assert len(torch.unique(y.flatten(1), dim=0)) == 8
    assert torch.equal(y, augment(x, generator=_seeded(3)))
    assert not torch.equal(y, augment(x, generator=_seeded(4)))
    before = torch.get_rng_state()
    augment(x, generator=_seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_shape_and_input_are_kept(dtype):
    x = _images().to(dtype)
    before = x.clone()
    y = augment(x, padding="reflection")
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(x, before)
    assert augment(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize(
    ("kwargs", "error", "wording"),
    [
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, TypeError, "images must be a floating-point tensor"),
        (
            {"images": torch.zeros(3, 4, 4)},
            ValueError,
            r"images must have shape \(m, channels, h, w\), got \(3, 4, 4\)",
        ),
        ({"flip": 1.5}, ValueError, r"flip must lie in \[0, 1\]"),
        ({"crop": 1.0}, ValueError, r"crop must lie in \[0, 1\)"),
        ({"rotation": -5.0}, ValueError, r"rotation must lie in \[0, 180\]"),
        ({"distortion": 2.0}, ValueError, r"distortion must lie in \[0, 0\.5\]"),
        ({"padding": "wrap"}, ValueError, "padding must be 'zeros', 'border' or 'reflection', got 'wrap'"),
        ({"generator": 1}, TypeError, "generator must be a torch"),
    ],
)
def test_errors_say_what_must_hold_and_what_came(kwargs, error, wording):
    with pytest.raises(error, match=wording):
        augment(kwargs.pop("images", _images()), **kwargs)
