"""What TensorBoard shows and in which order: a tag is ``group/card``; groups and cards sort by name, hence the numbers.

A group's heading has a full line, a card's title about thirty characters, so the sentence goes to the group.
"""

DEPTH = "1 Size of the signal along an untrained net: log10 of its rms (horizontal: layer)"
TRAINING = "2 Training a ReLU net at rate {rate:g} from each init (horizontal: epoch)"
OTHER_RATES = "3 The same at the other learning rates (horizontal: epoch)"
OTHER_NETS = "4 Size of the signal along other untrained nets: log10 of its rms (horizontal: layer)"
HISTOGRAMS = "5 Where the values lie, layer by layer (depth axis: layer)"
FIGURES = "0 In one picture"
HPARAMS = "9 Columns of the HParams table"
MONITOR = "6"
