"""What the ops run on a device beneath their arithmetic: the same results, sooner."""

from torchnotes.ops.kernels._dispatch import mode as mode
