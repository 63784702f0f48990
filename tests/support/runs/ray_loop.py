"""A training function for Ray Train that falls, or meets a full disk, where a test wants it to."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import ray_imuckpt
from ray_imuckpt import Checkpointer
from ray_imuckpt.storage import local
from support.runs.ray_gang import training_of_worker
from support.runs.whole_gang import LAST, Training
from support.waiting import until_committed

LOSSES = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.2, 6: 0.6}


def loop(config: dict[str, Any]) -> None:
    """Train; fall as `config` says, before the first restart."""
    training = training_of_worker()
    rank, model, optimizer = training.rank, training.model, training.optimizer
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer, **training.objects)
    notes = Path(config["notes"])
    with (notes / f"starts-{rank}").open("a") as file:
        file.write(f"{started.start_epoch} ")
    fallen = notes / "fallen"

    def fall(epoch: int) -> None:
        if config.get("die_before_report") == epoch and rank == 1 and not fallen.exists():
            until_committed(str(checkpointer.dir), epoch)  # rank 0 is still writing it
            fallen.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    report = ray.train.report

    def dying_report(metrics: dict[str, Any], **keywords: Any) -> None:
        fall(metrics["epoch"])
        report(metrics, **keywords)

    ray.train.report = dying_report  # committed in storage, but Ray has not heard of it
    for epoch in range(started.start_epoch, LAST + 1):
        training.epoch(epoch)
        started.log.append(epoch)
        if config.get("raise_at") == epoch and not fallen.exists():
            until_committed(str(checkpointer.dir), epoch - 1)  # Ray soon ends who has raised
            fallen.touch()
            raise RuntimeError("as the test wants")
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=started.log,
            metrics={"epoch": epoch, "loss": LOSSES[epoch]},
            **training.objects,
        )
    if config.get("again"):
        save_again(checkpointer, training, started.log, notes)


def save_again(checkpointer: Checkpointer, training: Training, log: list[Any], notes: Path) -> None:
    """Epoch 6, which Ray knows, twice more: once the disk is full, once it is slow."""
    checkpointer.wait()
    put = local.LocalStorage.put_if

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "as the test wants")

    def slow(*arguments: Any) -> bool:
        time.sleep(4)
        return put(*arguments)

    for kind, entry in ((full, "lost"), (slow, "saved again")):
        local.LocalStorage.put_if = kind  # type: ignore[assignment, method-assign]
        try:
            checkpointer.checkpoint(
                6, model=training.model, optimizer=training.optimizer, log=[*log, entry],
                metrics={"epoch": 6, "loss": 0.0}, force=True, **training.objects,
            )  # fmt: skip
        except ray_imuckpt.SaveFailedError:
            (notes / f"{entry}-{training.rank}").touch()
    local.LocalStorage.put_if = put  # type: ignore[method-assign]


def fit(
    notes: Path, checkpointer: Checkpointer, workers: int, run_config: RunConfig, **how: Any
) -> Any:
    """Run `loop` on a gang."""
    notes.mkdir()
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "notes": str(notes), **how},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=run_config,
    ).fit()
