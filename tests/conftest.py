"""One thread: the networks here are so small that a second one slows every test down."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
