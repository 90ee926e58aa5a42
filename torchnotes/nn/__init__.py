"""Layers over the hand-derived ops, each interchangeable with its torch.nn twin."""

from torchnotes.nn.batch_norm import BatchNorm1d as BatchNorm1d
from torchnotes.nn.batch_norm import BatchNorm2d as BatchNorm2d
from torchnotes.nn.bce_loss import BCELoss as BCELoss
from torchnotes.nn.bce_with_logits_loss import BCEWithLogitsLoss as BCEWithLogitsLoss
from torchnotes.nn.cross_entropy_loss import CrossEntropyLoss as CrossEntropyLoss
from torchnotes.nn.dense import Dense as Dense
from torchnotes.nn.dropout import Dropout as Dropout
from torchnotes.nn.leaky_relu import LeakyReLU as LeakyReLU
from torchnotes.nn.linear import Linear as Linear
from torchnotes.nn.log_softmax import LogSoftmax as LogSoftmax
from torchnotes.nn.mlp import MLP as MLP
from torchnotes.nn.relu import ReLU as ReLU
from torchnotes.nn.sigmoid import Sigmoid as Sigmoid
from torchnotes.nn.softmax import Softmax as Softmax
from torchnotes.nn.tanh import Tanh as Tanh
