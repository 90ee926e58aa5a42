"""The notes' update rules as ``torch.optim.Optimizer``, their decays as ``LRScheduler``, and their running average."""

from torchnotes.optim import lr_scheduler as lr_scheduler
from torchnotes.optim._groups import l2_groups as l2_groups
from torchnotes.optim.adam import Adam as Adam
from torchnotes.optim.exponential_average import ExponentialAverage as ExponentialAverage
from torchnotes.optim.gradient_descent import GradientDescent as GradientDescent
from torchnotes.optim.momentum import Momentum as Momentum
from torchnotes.optim.rmsprop import RMSprop as RMSprop

__all__ = ["GradientDescent", "Momentum", "RMSprop", "Adam", "ExponentialAverage", "l2_groups", "lr_scheduler"]
