"""Mean and squared deviations of many features at once, in pieces that can be added together.

Σx² − (Σx)²/m cancels: for mean 1e8 and standard deviation 1 both terms are near m·1e16 and float64 keeps nothing of
their difference. Here every piece is centred on its own mean before anything is squared, and pieces are joined by the
formula of Chan, Golub and LeVeque (1979), which only ever squares differences of means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows are taken in pieces of about this many elements, so that the float64 copy stays near 8 MiB.
CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Moments:
    """Per feature: how many finite values, their mean, Σ(x − μ)², and how many values were not finite."""

    count: Tensor  # int64 (n,)
    mean: Tensor  # float64 (n,)
    squares: Tensor  # float64 (n,)
    nonfinite: Tensor  # int64 (n,)

    @classmethod
    def empty(cls, num_features: int, device: torch.device | None = None) -> Moments:
        """The moments of no samples: what merging starts from."""
        integer = torch.zeros(num_features, dtype=torch.int64, device=device)
        real = torch.zeros(num_features, dtype=torch.float64, device=device)
        return cls(integer, real, real.clone(), integer.clone())

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together, to round-off whatever their sizes.

        With δ = μ_b − μ_a and m = m_a + m_b:  μ = μ_a + δ m_b/m;  S = S_a + S_b + δ² m_a m_b/m.
        """
        count = self.count + other.count
        share = other.count.double() / count.clamp_min(1)  # m_b/m; where nothing was counted, 0/1
        # An empty side has no mean: the other side's is taken as it is.
        start = torch.where(self.count == 0, other.mean, self.mean)
        delta = (other.mean - start).where(other.count > 0, 0.0)
        mean = start + delta * share
        squares = self.squares + other.squares + delta * delta * self.count * share
        return Moments(count, mean, squares, self.nonfinite + other.nonfinite)

    def to(self, device: torch.device) -> Moments:
        """The same numbers on another device."""
        return Moments(*(tensor.to(device) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four, in the order of the fields."""
        return self.count, self.mean, self.squares, self.nonfinite


def moments_of(x: Tensor, feature_dim: int) -> Moments:
    """Moments over every axis of ``x`` but ``feature_dim``; NaN and ±inf are counted and left out.

    ``x`` is read in pieces along its first axis; each piece is converted to float64 before any arithmetic.
    """
    num_features = x.shape[feature_dim]
    total = Moments.empty(num_features, x.device)
    if x.numel() == 0:
        return total
    feature_axis = feature_dim % x.dim()
    rows = max(1, CHUNK_ELEMENTS * len(x) // x.numel()) if feature_axis else len(x)
    for piece in x.split(rows):
        total = total.merge(_moments_of_piece(piece.movedim(feature_axis, -1).reshape(-1, num_features)))
    return total


def _moments_of_piece(x: Tensor) -> Moments:
    wide = x.to(torch.float64)  # (m, n)
    finite = wide.isfinite()
    if bool(finite.all()):
        count = torch.full((wide.shape[1],), wide.shape[0], dtype=torch.int64, device=x.device)
        # Shifting by one of the values makes a constant feature's deviations exactly 0 and the mean exactly its value.
        shift = wide[0].clone()
        deviation = wide.sub(shift)
        mean = deviation.mean(dim=0)
    else:
        count = finite.sum(dim=0)
        first = finite.to(torch.uint8).argmax(dim=0, keepdim=True)
        shift = wide.gather(0, first).squeeze(0).where(count > 0, 0.0)
        deviation = wide.sub(shift).where(finite, 0.0)
        mean = deviation.sum(dim=0) / count.clamp_min(1)
    centred = (deviation - mean).where(finite, 0.0)
    squares = centred.square().sum(dim=0)
    return Moments(count, shift + mean, squares, wide.shape[0] - count)
