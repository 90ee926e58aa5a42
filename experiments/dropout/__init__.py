"""Dropout: what it leaves unchanged, what it does to J, what it is worth, and prediction with it off.

    python -m experiments.dropout

1. Inverted dropout itself: how many units it zeroes, the mean it keeps, and what happens without the division.
2. J of full-batch gradient descent with dropout off, with a fresh mask in every pass, and with one mask held fixed.
3. A large net on few digits: no dropout, one keep_prob for all layers, the lowest at the largest layer or elsewhere,
   and at the input.
4. Prediction: dropout off, one pass with it on, and the average of many passes.

Source: the notes, "dropout regularisation" and "understanding dropout"; SPEC A10, F9, F13.
"""
