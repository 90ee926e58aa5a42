"""Zero mean and unit variance for every input feature, by the training set's own figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchnotes._checks import describe
from torchnotes.data._moments import Moments
from torchnotes.data._reading import Batches, check_input, name_features, read_moments, wrong_size


class InputNormalizer(nn.Module):
    """Normalise inputs feature by feature: y = (x − μ) / σ, with μ = Σx/m and σ² = Σ(x − μ)²/m.

    Fit it on the training set only, then put it before the first layer: the dev set, the test set and every later
    input go through the same μ and σ. Features ranging over 1…1000 beside others in 0…1 make the cost a narrow bowl,
    in which gradient descent must take small steps; normalised, the bowl is rounder and the steps can be larger.

    The division is by σ, not by σ² as the notes print it: dividing by the variance leaves variance 1/σ² (SPEC G1).

    What is kept: four buffers, one number per feature each, part of ``state_dict``: ``count`` and ``nonfinite``
    (int64), ``mean`` and ``squares`` = Σ(x − μ)² (float64). They stay float64 when the model is cast to another dtype:
    a mean of 1e8 beside a deviation of 1 has no room in float32. The difference x − μ is taken with μ as a sum of two
    numbers of the input's precision, so it is as exact as the input allows.

    * A constant feature (σ = 0) is centred and not scaled, so it becomes 0; ``constant_features`` names it.
    * NaN and ±inf are refused, with the features named; with ``nonfinite_values="ignore"`` they are left out of the
      statistics, counted in ``nonfinite``, and pass through :meth:`forward` as they came.
    * Memory: fitting reads the data in pieces and needs about 40 MiB beside it, whatever its size.

    Args:
        num_features: number of features n; None takes it from the first data or the loaded state.
        feature_dim: the axis of the features, -1 for a table ``(*, n)``, 1 for images ``(m, channels, h, w)``;
            statistics run over all other axes.
        nonfinite_values: ``"raise"`` or ``"ignore"``, for NaN and ±inf in the data to fit.
        device: where the buffers live; by default the CPU, or the first data's device if ``num_features`` is None.

    Shapes: x ``(*, n)``, or with ``feature_dim=1`` ``(m, n, *)``; the output has the shape and dtype of x (integers
    give the default dtype).

    Raises:
        RuntimeError: used before :meth:`fit`, :meth:`partial_fit`, :meth:`merge` or loading a fitted state.
        TypeError: x is not a tensor, or boolean or complex.
        ValueError: another number of features, no samples, or non-finite data to fit.

    Source: the notes, "normalising inputs"; SPEC E1, G1, G14. Streaming: Chan, Golub and LeVeque (1979).

    >>> train = torch.tensor([[1.0, 200.0], [3.0, 600.0]])
    >>> normalizer = InputNormalizer().fit(train)
    >>> normalizer(train)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    >>> normalizer(torch.tensor([[2.0, 1000.0]]))  # the dev set by the training set's μ and σ
    tensor([[0., 3.]])
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    nonfinite: Tensor
    scale: Tensor

    def __init__(
        self,
        num_features: int | None = None,
        *,
        feature_dim: int = -1,
        nonfinite_values: Literal["raise", "ignore"] = "raise",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_features is not None and (
            isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1
        ):
            raise ValueError(
                f"num_features must be an integer of at least 1, got {num_features!r}; "
                "leave it out to take it from the first data."
            )
        if nonfinite_values not in ("raise", "ignore"):
            raise ValueError(
                f"nonfinite_values must be 'raise' or 'ignore', got {nonfinite_values!r}; "
                "'ignore' leaves NaN and inf out of the statistics."
            )
        self.feature_dim = feature_dim
        self.nonfinite_values = nonfinite_values
        self._fitted = False
        self._sized = num_features is not None
        self._placed = device is not None
        for name, tensor in vars(Moments.empty(num_features or 0, torch.device(device or "cpu"))).items():
            self.register_buffer(name, tensor)
        # What forward divides by, worked out once: σ, or 1 where the feature is constant.
        self.register_buffer("scale", torch.ones_like(self.mean), persistent=False)

    @property
    def num_features(self) -> int | None:
        """Number of features, None while it is not known."""
        return self.mean.numel() if self._sized else None

    @property
    def var(self) -> Tensor:
        """σ² = Σ(x − μ)²/m per feature, float64, divided by m and not m − 1, as the notes do."""
        self._require_fitted()
        return self.squares / self.count.clamp_min(1)

    @property
    def std(self) -> Tensor:
        """σ per feature, float64; 0 for a constant feature."""
        return self.var.sqrt()

    @property
    def constant_features(self) -> list[int]:
        """Features that never varied, so that they cannot be scaled: by index."""
        self._require_fitted()
        return torch.nonzero(self._is_constant()).flatten().tolist()

    @property
    def nonfinite_features(self) -> dict[int, int]:
        """Features in which NaN or ±inf was met: how many values, by index."""
        hit = torch.nonzero(self.nonfinite).flatten().tolist()
        return {index: int(self.nonfinite[index]) for index in hit}

    def fit(self, x: Tensor | Batches) -> InputNormalizer:
        """Take μ and σ from the training set: a tensor, or an iterable of batches such as a DataLoader.

        Of a batch that is a tuple or list the first entry is the input. What was fitted before is forgotten, but only
        once the new data has been read without an error.

        Returns:
            self, so that ``InputNormalizer().fit(x_train)`` is one expression.
        """
        self._store(self._read_all(x))
        return self

    def partial_fit(self, x: Tensor | Batches) -> InputNormalizer:
        """Add a batch (or an iterable of batches) to what was fitted before, as if all had come at once."""
        fresh = self._read_all(x)
        self._store(self._moments().merge(fresh.to(self.mean.device)) if self._fitted else fresh)
        return self

    def merge(self, other: InputNormalizer) -> InputNormalizer:
        """Add what another normaliser has seen, in another process perhaps, to this one's."""
        if not isinstance(other, InputNormalizer):
            raise TypeError(f"other must be an InputNormalizer, got {describe(other)}; fit one on the other data.")
        other._require_fitted()
        self._require_size(other.mean.numel(), "other")
        fresh = other._moments()
        self._store(self._moments().merge(fresh.to(self.mean.device)) if self._fitted else fresh)
        return self

    def all_merge(self, group: Any = None) -> InputNormalizer:
        """Merge over every rank of ``torch.distributed``: all ranks then hold the same figures, bit for bit.

        Call it once on every rank after each has fitted its own share; a rank that saw no data takes part too.

        Args:
            group: the process group; None for the default one.

        Raises:
            RuntimeError: torch.distributed is not initialised.
            ValueError: the ranks hold different numbers of features, raised on every rank.
        """
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "all_merge needs torch.distributed to be initialised, and it is not; "
                "call torch.distributed.init_process_group first, or join normalisers in one process with merge."
            )
        mine = torch.tensor([self.mean.numel()], device=self.mean.device)
        sizes = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, mine, group=group)
        known = sorted({int(size) for size in sizes} - {0})
        if len(known) != 1:
            raise ValueError(
                f"every rank must hold the same number of features, got {known or 'none on any rank'}; "
                "fit the same columns on each rank."
            )
        local = self._moments() if self.mean.numel() else Moments.empty(known[0], self.mean.device)
        gathered = [[torch.empty_like(tensor) for _ in sizes] for tensor in local.tensors()]
        for pieces, tensor in zip(gathered, local.tensors(), strict=True):
            dist.all_gather(pieces, tensor, group=group)
        total = Moments.empty(known[0], self.mean.device)
        for rank in range(len(sizes)):  # in the order of ranks everywhere, so that every rank rounds alike
            total = total.merge(Moments(*(pieces[rank] for pieces in gathered)))
        self._store(total)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: y = (x − μ) / σ, differentiable in x."""
        self._require_input(x)
        work, high, low, scale = self._at_precision_of(x)
        # x − high is exact or nearly so where x lies close to μ (Sterbenz), so the rest of μ still counts.
        return work.sub(high).sub_(low).div_(scale).to(_output_dtype(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Undo it: x = y σ + μ, in the units of the data."""
        self._require_input(y)
        work, high, low, scale = self._at_precision_of(y)
        return work.mul(scale).add_(low).add_(high).to(_output_dtype(y))

    @torch.no_grad()
    def fold_into_(self, linear: nn.Module) -> nn.Module:
        """Merge the normalisation into the first layer, in place, so that it takes raw inputs from then on.

        W (x − μ)/σ + b = (W/σ) x + (b − W μ/σ): the weight's columns are divided by σ, and the bias takes the rest (a
        layer without one is given one). Drop the normaliser from the model afterwards; it is left as it was.

        Args:
            linear: a layer with ``weight`` (n_out, n) and ``bias`` (n_out,) or None, such as ``nn.Linear``.

        Returns:
            ``linear``.

        Raises:
            TypeError: not such a layer.
            ValueError: another number of inputs, features not on the last axis, or means so large beside the
                deviations (|μ|/σ times the weight's machine epsilon above 1e-3) that the folded layer would lose the
                signal to round-off.
        """
        self._require_fitted()
        weight, bias = self._check_foldable(linear)
        device = weight.device
        mean, scale = self.mean.to(device), self.scale.to(device)
        scaled = weight.double() / scale  # (n_out, n)
        shift = -(scaled @ mean)  # (n_out,)
        if bias is None:
            linear.register_parameter("bias", nn.Parameter(shift.to(weight.dtype)))
        else:
            bias.copy_(bias.double() + shift)
        weight.copy_(scaled)
        return linear

    def report(self) -> str:
        """What was fitted and what could not be normalised, in plain words.

        >>> print(InputNormalizer().fit(torch.tensor([[1.0, 7.0], [3.0, 7.0]])).report())
        2 features fitted on 2 values each.
        1 constant, centred but not scaled: feature 1.
        """
        self._require_fitted()
        low, high = int(self.count.min()), int(self.count.max())
        values = f"{high:,}" if low == high else f"{low:,} to {high:,}"
        lines = [f"{self.mean.numel():,} features fitted on {values} values each."]
        constant = self.constant_features
        if constant:
            lines.append(f"{len(constant):,} constant, centred but not scaled: {name_features(constant)}.")
        bad = self.nonfinite_features
        if bad:
            lines.append(f"{sum(bad.values()):,} NaN or infinite values left out: {name_features(bad)}.")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """The summary shown when the model is printed."""
        state = "fitted" if self._fitted else "not fitted"
        axis = "" if self.feature_dim == -1 else f", feature_dim={self.feature_dim}"
        return f"{self.num_features if self._sized else '?'} features{axis}, {state}"

    def _moments(self) -> Moments:
        return Moments(self.count, self.mean, self.squares, self.nonfinite)

    def _store(self, moments: Moments) -> None:
        adopt_device = not (self._placed or self._sized)
        device = moments.mean.device if adopt_device else self.mean.device
        for name, tensor in vars(moments.to(device)).items():
            setattr(self, name, tensor)
        self._sized = self._fitted = True
        self.scale = self._scale()

    def _is_constant(self) -> Tensor:
        # Deviations of a unit in the last place of a float64 mean are round-off, not signal.
        return self.std <= 2 * torch.finfo(torch.float64).eps * self.mean.abs()

    def _scale(self) -> Tensor:
        return self.std.where(~self._is_constant(), 1.0)

    def _at_precision_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # half precision cannot hold a mean of 1e5
        if not x.dtype.is_floating_point:
            dtype = torch.float64
        high = self.mean.to(dtype)
        low = (self.mean - high).to(dtype)
        shape = [1] * x.dim()
        shape[self.feature_dim] = -1
        return x.to(dtype), high.view(shape), low.view(shape), self.scale.to(dtype).view(shape)

    def _read_all(self, x: Tensor | Batches) -> Moments:
        return read_moments(x, self.feature_dim, self.num_features, ignore_nonfinite=self.nonfinite_values == "ignore")

    def _require_fitted(self) -> None:
        if not self._fitted:
            raise RuntimeError(
                "InputNormalizer must be fitted before it is used, and it is not; "
                "call fit(x_train), partial_fit(batch) or load a fitted state_dict first."
            )

    def _require_input(self, x: Tensor) -> None:
        self._require_fitted()
        check_input(x, self.feature_dim)
        self._require_size(x.shape[self.feature_dim], "x")

    def _require_size(self, got: int, name: str) -> None:
        if self._sized and got != self.mean.numel():
            raise ValueError(wrong_size(got, self.mean.numel(), name, self.feature_dim))

    def _check_foldable(self, linear: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
        own = dict(linear.named_parameters(recurse=False)) if isinstance(linear, nn.Module) else {}
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or weight.dim() != 2 or not hasattr(linear, "bias"):
            raise TypeError(
                f"linear must be a layer with parameters weight (n_out, n_in) and bias, got {type(linear).__name__}; "
                "fold into the first nn.Linear (remove a parametrization first)."
            )
        self._require_size(weight.shape[1], "linear")
        if self.feature_dim != -1:
            raise ValueError(
                f"feature_dim must be -1 to fold into a linear layer, got {self.feature_dim}; keep the normaliser."
            )
        loss = float((self.mean.abs() / self.scale).max()) * torch.finfo(weight.dtype).eps
        if loss > 1e-3:
            raise ValueError(
                f"means must be small beside the deviations to be folded into {str(weight.dtype).split('.')[-1]}, got "
                f"round-off of {loss:.1e} of a standard deviation; keep the normaliser, or fold in float64."
            )
        return weight, bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InputNormalizer:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:  # model.half() must move the statistics, not round them
                setattr(self, name, tensor.to(moved.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "mean")
        if isinstance(saved, Tensor) and not self._sized:
            for name, tensor in vars(Moments.empty(saved.numel(), self.mean.device)).items():
                setattr(self, name, tensor)
            self._sized = saved.numel() > 0
        super()._load_from_state_dict(state_dict, prefix, *args)
        counted = self.count + self.nonfinite
        self._fitted = counted.device.type != "meta" and bool(counted.any())
        self.scale = self._scale() if self._fitted else torch.ones_like(self.mean)


def _output_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
