"""Initial weights: why not zeros or a constant, how large at random, and what the misprints would do.

    python -m experiments.init_symmetry

1. A net with one hidden layer trained on the digits from zeros, a constant, and random weights of three sizes: the
   distance between the hidden units' weights through training, and what the net learns.
2. The variance of z for every formula the notes print, beside the one they mean.
3. Steps to a given cost in a net of five ReLU layers, for each scheme; and how much the gain matters beside the rate.

Source: the notes, "random initialisation" and "weight initialisation of deep networks"; SPEC B1-B7, G2-G5, G10.
"""
