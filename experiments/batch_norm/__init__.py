"""See what batch normalisation changes: rates that work, shifts inside the net, noise, one sample at test time.

Real data: handwritten digits. Five parts:

1. Identities: the γ and β that undo it, the bias that it makes redundant, its running averages, one sample alone.
2. Nets of several depths with it and without, over learning rates and over scales of the initial weights.
3. How far the distribution of a hidden layer's values shifts while the layers before it learn.
4. The noise that the other samples of a batch bring, by batch size, and what it does to the dev cost.
5. At test time: running averages as the notes and as PyTorch keep them, against the test batch's own statistics.

Source: the notes, "batch normalisation"; SPEC A11, G15.
"""
