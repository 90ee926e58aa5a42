"""Bias and variance: errors over size of net and of data, and the recipe followed until both are low.

    python -m experiments.bias_variance

1. ``diagnose_fit`` on the notes' five examples.
2. Training and dev error of nets of growing size, and of one net on growing data.
3. The recipe, step by step: a tiny net on few digits; first against bias, then against variance, each step chosen by
   what the diagnosis says.
4. The same net judged on few dev images: what the sampling error is for.

Source: the notes, "bias and variance" and "the basic recipe"; SPEC F10, E2.
"""
