"""See what the size of a mini-batch costs and gains per step, per epoch and per second.

Real data: 1,437 training images of handwritten digits. Five parts, each under one heading in TensorBoard:

1. The noise of one batch's gradient at a fixed point, beside what sampling theory says it must be.
2. How near a minimum that is known each size stays, at one rate: softmax regression with an L2 penalty is convex.
3. A race of all sizes to the same training cost, each at the best rate of a grid: epochs, steps and seconds.
4. Whether sizes that are powers of two run faster.
5. What shuffling is for: images sorted by class, in the same order each epoch and in a new one.

Source: the notes, "mini-batch gradient descent"; SPEC E3.
"""
