"""A script that saves, and ends with its Checkpointer still there; run by test_gang.py."""

import sys

import torch
import torch.distributed as dist

from ray_imuckpt import Checkpointer

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(2, 2)
checkpointer = Checkpointer(sys.argv[1])
checkpointer.start(model)
checkpointer.checkpoint(1, model=model)
checkpointer.wait()
dist.destroy_process_group()
