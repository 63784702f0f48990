"""A training of two ranks that nobody kills: what runs of Ray are held against.

python -m support.runs.whole_gang DIRECTORY
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential
from support.forking import import_all, on_gang

LAST = 6


class Training:
    """Everything that has a state: dropout, batch norm, three generators, a sampler, a scheduler.

    Args:
        rank: Of this process.
        size: How many ranks there are.
        wrap: What joins the models of the ranks.

    Attributes:
        objects: What `Checkpointer.start` and ``checkpoint`` get by keyword.
    """

    def __init__(self, rank: int, size: int, wrap: Callable[[nn.Module], nn.Module]) -> None:
        torch.set_num_threads(1)
        self.rank, self._size = rank, size
        self.model = wrap(small_model())
        self.optimizer = adamw(self.model)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(self.rank)
        data = TensorDataset(torch.linspace(-1, 1, 32 * 4).reshape(32, 4))
        self._sampler: DistributedSampler[Any] = DistributedSampler(data, size, rank, seed=5)
        self._loader = DataLoader(data, batch_size=4, sampler=self._sampler)
        self._scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            self.optimizer, T_0=3
        )
        self._scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
        self._plateau = PlateauDetector(Exponential(1e-2, 0.9), patience=1)
        self.objects: dict[str, Any] = {
            "scheduler": self._scheduler,
            "scaler": self._scaler,
            "plateau": self._plateau,
        }

    def epoch(self, epoch: int) -> float:
        """Train an epoch; returns this rank's last loss."""
        self._sampler.set_epoch(epoch)
        for (x,) in self._loader:
            noise = random.random() + np.random.rand()
            loss = (self.model(x + torch.randn_like(x)) + noise).square().mean()
            self.optimizer.zero_grad()
            self._scaler.scale(loss).backward()
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self._scheduler.step()
        mean = loss.detach().clone()
        if self._size > 1:  # what is not in per_rank must be the same on every rank
            dist.all_reduce(mean)
        if self._plateau.step(mean.item()):
            self._plateau.adjust(self.optimizer)
        return loss.item()


def _train(checkpointer: Checkpointer, rank: int) -> None:
    training = Training(rank, 2, DistributedDataParallel)
    checkpointer.start(training.model, training.optimizer, **training.objects)
    for epoch in range(1, LAST + 1):
        training.epoch(epoch)
        checkpointer.checkpoint(
            epoch, model=training.model, optimizer=training.optimizer, **training.objects
        )
    checkpointer.wait()


if __name__ == "__main__":
    import_all()
    sys.exit(any(on_gang(2, partial(_train, Checkpointer(sys.argv[1]))).values()))
