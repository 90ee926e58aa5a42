"""See gradient descent, momentum, RMSprop and Adam on a bowl, a plateau, a saddle and the digits.

Four parts:

1. A long bowl, ½(x² + 50 y²): the way each takes at its best rate, and the largest rate it bears.
2. A plateau, ½σ(w)² far out, and a saddle, ½(x² − y²) + ¼y⁴: who leaves, and after how many steps.
3. How rare minima are among critical points as the dimension grows: random symmetric matrices, and small nets.
4. The digits, each at the best rate of a grid; and the forms of the rules: (1 − β) or not, ε inside or outside,
   which β corrects S.

Source: the notes, "gradient descent with momentum", "RMSprop" and "Adam"; SPEC F1, F3-F5, F7, G6, G7, G16.
"""
