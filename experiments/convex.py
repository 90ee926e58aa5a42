"""A cost whose minimum is known: softmax regression on the digits with an L2 penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.digits import CLASSES, Digits
from torchnotes.nn import Linear
from torchnotes.ops import cross_entropy
from torchnotes.optim import l2_groups
from torchnotes.regularization import Penalty

DECAY = 0.01  # λ/m of the penalty λ/(2m) ‖W‖²


@dataclass(frozen=True)
class Regression:
    """J(W, b) = cross-entropy over the training images + λ/(2m) ‖W‖²: convex, with one minimum.

    Attributes:
        digits: the data.
    """

    digits: Digits

    @property
    def samples(self) -> int:
        """The size m of the training set."""
        return len(self.digits.x_train)

    def start(self, dtype: torch.dtype = torch.float32) -> Linear:
        """All zero, which needs no seed: with one layer there is no symmetry to break."""
        x = self.digits.x_train
        net = Linear(x.shape[1], CLASSES, device=x.device, dtype=dtype)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        return net

    def groups(self, net: Linear) -> list[dict[str, object]]:
        """Parameter groups for an optimiser: it adds the penalty's gradient λ/m W itself."""
        return l2_groups(net, DECAY)

    def penalty(self) -> Penalty:
        """The penalty as a term of the cost."""
        return Penalty("l2", lambd=DECAY * self.samples, m=self.samples)

    def cost(self, net: Linear) -> Tensor:
        """J over the whole training set."""
        x = self.digits.x_train.to(net.weight.dtype)
        return cross_entropy(net(x), self.digits.y_train) + self.penalty()(net)

    @torch.no_grad()
    def value(self, net: Linear) -> float:
        """J as a number."""
        return float(self.cost(net))

    def minimum(self) -> tuple[float, Linear]:
        """The least J and the weights there, in float64: L-BFGS until the gradient is below 1e-7."""
        net = self.start(torch.float64)
        solver = torch.optim.LBFGS(
            net.parameters(), max_iter=2000, history_size=50, tolerance_grad=1e-7, tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> float:
            solver.zero_grad()
            cost = self.cost(net)
            cost.backward()
            return float(cost.detach())

        solver.step(closure)
        return self.value(net), net
