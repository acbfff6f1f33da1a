"""What a network is: preprocessing, stacked networks, training, ensembles and their export."""

import os

# MKL else chooses kernels by where in memory a matrix lies, and a network's numbers would depend on its place in a
# stack. It reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")
