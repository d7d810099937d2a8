"""One thread and no terminal for all tests and their processes: two OpenMP pools on two cores spin each other down."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)  # of the terminal of whoever runs the tests: tables would be as wide
torch.set_num_threads(1)
