"""A Ray Train run in a driver of its own, to be killed; test_ray_driver.py and soak.py start it.

python rayruns.py DIRECTORY LAST_EPOCH      trains on two workers, and tells what has become of it

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
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from conftest import adamw, small_model, start_ray
from ray_imuckpt import Checkpointer
from sameruns import digest


def loop(config: dict[str, Any]) -> None:
    """Dropout, batch norm, three generators; the state of each rank differs."""
    torch.set_num_threads(1)
    where = Path(config["where"])
    rank = ray.train.get_context().get_world_rank()
    model = prepare_model(small_model())
    optimizer = adamw(model)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(rank)
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer)
    (where / f"pid-{rank}").write_text(str(os.getpid()))
    log = started.log
    for epoch in range(started.start_epoch, config["last"] + 1):
        noise = random.random() + np.random.rand()
        loss = (model(torch.randn(16, 4)) + noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append([epoch, loss.item()])
        time.sleep(config["pause"])
        while epoch == config["last"] and (where / "hold").exists():
            time.sleep(0.1)
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log, metrics={"epoch": epoch}
        )


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
    told = {
        "epochs": checkpointer.list_existing_checkpoint_indices(),
        "registered": result.checkpoint.path,
        "digest": digest(loaded.model, loaded.optimizer, loaded.log, loaded.ranks),
        "log": [epoch for epoch, _ in loaded.log],
    }
    print("told", json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
