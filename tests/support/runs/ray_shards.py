"""A training function for Ray Train whose model is sharded, in a gang that shrinks and grows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_imuckpt import Checkpointer
from ray_imuckpt.saving import receipts
from support.gangs import zoo
from support.programs import HANGS

LAST = 6
KILLED_IN, GROWS_AFTER = 3, 4  # epochs
_OTHERS = "another job"


def _train(run: zoo.Run) -> None:
    """Take two steps, each rank with noise of its own."""
    model, optimizer = run
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, zoo.WIDTH)).square().mean().backward()
        optimizer.step()


def _build(rank: int) -> zoo.Run:
    run = zoo.build("fsdp")
    torch.manual_seed(rank)
    return run


def loop(config: dict[str, Any]) -> None:
    """Train in a gang of two, one of which dies while it writes; then in a gang of three."""
    torch.set_num_threads(1)
    context, notes = ray.train.get_context(), Path(config["notes"])
    rank, size = context.get_world_rank(), context.get_world_size()
    first = not (notes / f"starts-{rank}").exists() and size == 2
    if first:  # the same, never interrupted
        whole = _build(rank)
        for _ in range(GROWS_AFTER):
            _train(whole)
        state = zoo.whole(whole)
        torch.save((state, torch.get_rng_state()), notes / f"whole-{rank}.pt")
    run = _build(rank)
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(*run)
    with (notes / f"starts-{rank}").open("a") as file:
        file.write(f"{size}:{started.start_epoch} ")
    if size > 2:
        torch.save(zoo.whole(run), notes / f"resumed-{rank}.pt")
    for epoch in range(started.start_epoch, LAST + 1):
        _train(run)
        if first and epoch == KILLED_IN and rank == 1:  # its files are in place by then
            receipts.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        checkpointer.checkpoint(
            epoch, model=run[0], optimizer=run[1], log=[*started.log, epoch],
            metrics={"epoch": epoch},
        )  # fmt: skip
        started.log.append(epoch)
        if size == 2 and epoch == GROWS_AFTER:
            checkpointer.wait()
            _wait_to_be_resized(rank)


def _wait_to_be_resized(rank: int) -> None:
    if rank == 0:  # the other job ends
        ray.get(get_or_create_autoscaling_coordinator().cancel_request.remote(_OTHERS))
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        time.sleep(0.1)
    raise TimeoutError("Ray has not resized the gang.")


def fit(notes: Path, checkpointer: Checkpointer) -> Any:
    """Run `loop` on two workers of a cluster with four CPUs, and then on three.

    Ray offers an elastic gang what other jobs have not asked for. How they ask has no public name;
    should it move, the gang begins with three.
    """
    notes.mkdir()
    coordinator = get_or_create_autoscaling_coordinator()
    asked = coordinator.request_resources.remote(
        _OTHERS, [{"CPU": 1}] * 2, expire_after_s=3600, priority=ResourceRequestPriority.HIGH
    )
    ray.get(asked)
    # Ray's annotations do not know that: an option, and that it is a pair of numbers.
    elastic: Any = {"num_workers": (1, 3), "elastic_resize_monitor_interval_s": 1}
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "notes": str(notes)},
        scaling_config=ScalingConfig(resources_per_worker={"CPU": 1}, **elastic),
        run_config=checkpointer.run_config(failure_config=FailureConfig(max_failures=1)),
    ).fit()
