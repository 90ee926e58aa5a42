"""See a deep net's signal vanish, explode and be cured by its initial weights.

Three parts, on the notes' "vanishing and exploding gradients" and "weight initialisation of deep networks":

1. ``linear_nets``: every W = c·I, 150 deep: the signal is c^(L-1) times the input, and so is the gradient;
2. ``random_nets``: every activation × every init, 50 deep, on handwritten digits: by what factor does a layer change
   the signal?
3. ``training``: a 30-deep ReLU net trained from each init over a grid of learning rates: which one learns?

Run it with ``python -m experiments.vanishing_exploding``. Source: the notes; SPEC B2-B7, C1-C6.
"""
