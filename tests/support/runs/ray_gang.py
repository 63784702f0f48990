"""A Ray Train run in a driver of its own, to be killed; soak/drivers.py starts it.

    python -m support.runs.ray_gang DIRECTORY LAST_EPOCH

It trains on two workers, and prints what has become of it.

While ``DIRECTORY/hold`` is there, the last epoch waits. Each worker leaves its process id.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from conftest import start_ray
from ray_imuckpt import Checkpointer
from support.runs.same_run import digest
from support.runs.whole_gang import Training


def training_of_worker() -> Training:
    """Return what this worker of Ray trains."""
    context = ray.train.get_context()
    return Training(context.get_world_rank(), context.get_world_size() or 1, prepare_model)


def loop(config: dict[str, Any]) -> None:
    """Train, and leave the process id."""
    where = Path(config["where"])
    training = training_of_worker()
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
    start_ray(2)
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
