"""Layers over the hand-derived ops, each interchangeable with its torch.nn twin."""

from torchnotes.nn.dropout import Dropout as Dropout
from torchnotes.nn.leaky_relu import LeakyReLU as LeakyReLU
from torchnotes.nn.linear import Linear as Linear
from torchnotes.nn.mlp import MLP as MLP
from torchnotes.nn.relu import ReLU as ReLU
from torchnotes.nn.sigmoid import Sigmoid as Sigmoid
from torchnotes.nn.tanh import Tanh as Tanh
