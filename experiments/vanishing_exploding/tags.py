"""What TensorBoard shows and in which order: a tag is ``group/card``; groups and cards sort by name, hence the numbers.

A group's heading has a full line, a card's title about thirty characters, so the sentence goes to the group.
"""

DEPTH = "1 Size of the signal along an untrained net: log10 of its rms (horizontal: layer)"
TRAINING = "2 Training a deep ReLU net at rate {rate:g} from each init (horizontal: epoch)"
FIGURES = "3 Growth of the signal per layer, in one picture"
OTHER_RATES = "4 Training at the other learning rates (horizontal: epoch)"
OTHER_NETS = "5 Size of the signal along other untrained nets: log10 of its rms (horizontal: layer)"
HISTOGRAMS = "6 Activations by layer"  # of a histogram's tag only the first 45 characters are shown
MONITOR = 7  # the monitor numbers its own groups from here: the net trained at the rate of group 2
HPARAMS = "99 Columns of the HParams table"
