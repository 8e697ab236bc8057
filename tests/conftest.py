"""Small models are fastest on one thread, and a run on one thread repeats itself exactly."""

import torch

torch.set_num_threads(1)
