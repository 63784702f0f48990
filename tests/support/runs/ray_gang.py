"""A Ray Train run in a driver of its own, to be killed; soak/drivers.py starts it.

    python -m support.runs.ray_gang DIRECTORY LAST_EPOCH

It trains on two workers, and prints what has become of it.

While ``DIRECTORY/hold`` is there, the last epoch waits. Each worker leaves its process id.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from conftest import adamw, small_model, start_ray
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential
from support.runs.same_run import digest


class Training:
    """Everything that has a state: dropout, batch norm, three generators, a sampler, a scheduler.

    Attributes:
        objects: What `Checkpointer.start` and ``checkpoint`` get by keyword.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        context = ray.train.get_context()
        self.rank, self._size = context.get_world_rank(), context.get_world_size()
        self.model = prepare_model(small_model())
        self.optimizer = adamw(self.model)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(self.rank)
        data = TensorDataset(torch.linspace(-1, 1, 32 * 4).reshape(32, 4))
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            data, self._size or 1, self.rank, seed=5
        )
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


def loop(config: dict[str, Any]) -> None:
    """Train, and leave the process id."""
    where = Path(config["where"])
    training = Training()
    rank, model, optimizer = training.rank, training.model, training.optimizer
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer, **training.objects)
    told = where / f"new-pid-{rank}"  # whoever looks must not see it half written
    told.write_text(str(os.getpid()))
    told.replace(where / f"pid-{rank}")
    log = started.log
    for epoch in range(started.start_epoch, config["last"] + 1):
        log.append([epoch, training.epoch(epoch)])
        time.sleep(config["pause"])
        while epoch == config["last"] and (where / "hold").exists():
            time.sleep(0.1)
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log, metrics={"epoch": epoch},
            **training.objects,
        )  # fmt: skip


def main(where: Path, last: int) -> None:
    """Train to the end; print the digest of what was saved last."""
    # Ray takes one report at each look at its workers, every two seconds by default.
    start_ray(2, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
    checkpointer = Checkpointer(where / "run")
    result = TorchTrainer(
        loop,
        train_loop_config={
            "checkpointer": checkpointer,
            "where": str(where),
            "last": last,
            "pause": float(os.environ.get("PAUSE", "0")),
        },
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=checkpointer.run_config(failure_config=FailureConfig(max_failures=-1)),
    ).fit()
    loaded = checkpointer.read()
    assert result.checkpoint is not None
    told = {
        "epochs": checkpointer.list_existing_checkpoint_indices(),
        "registered": result.checkpoint.path,
        "digest": digest(loaded.model, loaded.optimizer, loaded.log, loaded.other, loaded.ranks),
        "log": [epoch for epoch, _ in loaded.log],
    }
    print("told", json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
