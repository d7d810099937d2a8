"""One thread for every test and every process a test starts: two busy OpenMP pools on two cores spin each other down."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
