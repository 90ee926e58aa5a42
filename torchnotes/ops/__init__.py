"""The notes' ops, each with its backward written out and derived beside the code."""

from torchnotes.ops.batch_norm import batch_norm as batch_norm
from torchnotes.ops.binary_cross_entropy import binary_cross_entropy as binary_cross_entropy
from torchnotes.ops.binary_cross_entropy_with_logits import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from torchnotes.ops.cross_entropy import cross_entropy as cross_entropy
from torchnotes.ops.dense import dense as dense
from torchnotes.ops.dropout import dropout as dropout
from torchnotes.ops.l1_penalty import l1_penalty as l1_penalty
from torchnotes.ops.l2_penalty import l2_penalty as l2_penalty
from torchnotes.ops.leaky_relu import leaky_relu as leaky_relu
from torchnotes.ops.linear import linear as linear
from torchnotes.ops.log_softmax import log_softmax as log_softmax
from torchnotes.ops.relu import relu as relu
from torchnotes.ops.sigmoid import sigmoid as sigmoid
from torchnotes.ops.softmax import softmax as softmax
from torchnotes.ops.tanh import tanh as tanh
