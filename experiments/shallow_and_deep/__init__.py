"""Shallow and deep networks: what hidden layers add, and which activation learns in the fewest steps.

    python -m experiments.shallow_and_deep

1. The planar flower, which no line separates: logistic regression, one hidden layer of 1 to 50 units, deep nets.
2. A deep net of linear layers is one linear map, before and after training.
3. Sigmoid, tanh, ReLU and leaky ReLU as hidden activation: steps to a given cost on five problems, each at its best
   rate. The notes say that tanh is always better than sigmoid: that is measured here and not assumed.

Source: the notes, "shallow neural networks", "activation functions", "deep neural networks"; SPEC F12, A2-A6, A13, G9.
"""
