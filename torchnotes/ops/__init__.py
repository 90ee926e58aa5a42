"""The notes' ops, each with its backward written out and derived beside the code."""

from torchnotes.ops.dropout import dropout as dropout
from torchnotes.ops.leaky_relu import leaky_relu as leaky_relu
from torchnotes.ops.linear import linear as linear
from torchnotes.ops.relu import relu as relu
from torchnotes.ops.sigmoid import sigmoid as sigmoid
from torchnotes.ops.tanh import tanh as tanh
