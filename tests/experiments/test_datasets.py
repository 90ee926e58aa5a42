"""The data sets that experiments share."""

import math

import pytest
import torch
from matplotlib.colors import to_rgb
from sklearn.datasets import load_breast_cancer

from experiments.datasets import breast_cancer, circles, moons, planar_flower, split
from experiments.figures import blank_figure, draw_regions


@pytest.mark.parametrize("make", [planar_flower, moons, circles])
def test_points_are_drawn_by_seed_in_two_halves(make) -> None:
    before = torch.get_rng_state()
    x, y = make(300, seed=1)
    assert (x.shape, y.shape, y.dtype) == ((300, 2), (300, 1), torch.float32)
    assert y.sum() == 150
    assert torch.equal(make(300, seed=1)[0], x)
    assert not torch.equal(make(300, seed=2)[0], x)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_noise_the_points_lie_on_their_curves() -> None:
    x, y = circles(40, seed=0, noise=0.0, factor=0.5)
    torch.testing.assert_close(x.norm(dim=1, keepdim=True), 1 - 0.5 * y)
    x, _ = moons(40, seed=0, noise=0.0)
    torch.testing.assert_close(x[:20].norm(dim=1), torch.ones(20))
    torch.testing.assert_close((x[20:] - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(20))
    x, _ = planar_flower(40, seed=0, noise=0.0)
    t = torch.cat([torch.linspace(0, 3.12, 20), torch.linspace(3.12, 6.24, 20)])
    torch.testing.assert_close(x.norm(dim=1), (4 * torch.sin(4 * t)).abs())
    assert x.norm(dim=1).max() <= 4


def test_breast_cancer_is_scikit_learns_table_unchanged() -> None:
    x, y, names = breast_cancer(torch.float64)
    bunch = load_breast_cancer()
    assert torch.equal(x, torch.from_numpy(bunch.data))
    assert torch.equal(y[:, 0], torch.from_numpy(bunch.target).double())
    assert names[0] == "mean radius"
    assert (y == 1).sum() == 357  # benign


def test_sets_are_split_by_class_and_normalised_by_the_training_set() -> None:
    x, y, _ = breast_cancer(torch.float64)
    sets = split(x, y, seed=0)
    sizes = [len(part) for part in (sets.y_train, sets.y_dev, sets.y_test)]
    assert sum(sizes) == 569
    for part, size in zip((sets.y_train, sets.y_dev, sets.y_test), sizes, strict=True):
        assert math.isclose(part.mean().item(), 357 / 569, abs_tol=1 / size)
    normal = sets.normalized()
    assert normal.x_train.mean(0).abs().max() < 1e-12
    mean, std = sets.x_train.mean(0), sets.x_train.std(0, unbiased=False)
    torch.testing.assert_close(normal.x_dev, (sets.x_dev - mean) / std)


def test_regions_are_coloured_by_the_class_given() -> None:
    figure = blank_figure(1, 2, title="Title")
    x, y = moons(20, seed=0)
    draw_regions(figure.axes[0], lambda points: (points[:, 0] > 0.5).long(), x, y)
    mesh, samples = figure.axes[0].collections
    given = mesh.get_array().reshape(200, 200)
    assert set(given[:, 0]) == {0}
    assert set(given[:, -1]) == {1}
    assert samples.get_offsets().shape == (20, 2)
    assert tuple(mesh.cmap(mesh.norm(0))[:3]) == pytest.approx(to_rgb("tab:blue"))
