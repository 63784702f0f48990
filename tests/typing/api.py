"""The public names as a user's type checker sees them; checked by mypy, never run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn
from typing_extensions import assert_type

import ray_imuckpt
from ray_imuckpt import (
    Best,
    Checkpointer,
    LoadedCheckpoint,
    PendingSave,
    PlateauDetector,
    Retention,
    Retries,
    Start,
)
from ray_imuckpt.schedules import Exponential


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A training loop."""
    plateau = PlateauDetector(Exponential(1e-3, 0.7), patience=10)
    with Checkpointer("runs/a", continue_from=3, save_every=5, storage_options={}) as checkpointer:
        started = checkpointer.start(model, optimizer, per_rank={"a": plateau}, plateau=plateau)
        module, stepper, log, start_epoch, other = started
        checkpointer.restore_random_state()
        first: int = start_epoch
        values: dict[str, Any] = other
        trained: nn.Module = module
        stepper.step()
        pending: PendingSave | None = checkpointer.checkpoint(
            first,
            model=trained,
            optimizer=optimizer,
            log=log,
            metrics={"loss": 1.0},
            step=5,
            force=True,
            validation=True,
        )
        if pending is not None:
            pending.wait()
            done: bool = pending.done()
            words: tuple[str, str] = pending.state, pending.path
            pending.add_done_callback(lambda save: print(save.epoch, save.error))
            del done, words
        if plateau.step(1.0):
            plateau.adjust(optimizer)
            plateau.adjust(optimizer, 1)
            plateau.adjust(optimizer, lambda state: 1.0 / state)
        rate: float = plateau.learning_rate
        del rate, values


def policies(model: nn.Module) -> None:
    """What steers saves."""
    checkpointer = Checkpointer(
        "runs/a",
        save_every=5,
        save_interval=timedelta(minutes=10),
        retention=Retention(keep_last=3, keep_every=10, keep_best=("loss", "min", 2)),
        on_save_error="warn",
        max_failed_saves=3,
        progress=False,
        retries=Retries(attempts=5, deadline=timedelta(seconds=30)),
        on_commit=lambda path, metrics: print(path, metrics["loss"]),
    )
    best: int | None = checkpointer.index_of_best("loss", "min")
    model = checkpointer.load(model, "best")
    pending: PendingSave | None = checkpointer.checkpoint(1, model=model)
    error: Exception | None = None if pending is None else pending.error
    del best, error


def choices(model: nn.Module, of_ray: ray.train.Checkpoint) -> None:
    """What a run may continue from."""
    Checkpointer("runs/b", continue_from=None).start(model, continue_from="runs/a/checkpoint=3")
    Checkpointer("runs/b", continue_from=Path("runs/a/checkpoint=3")).start(model, continue_from=3)
    Checkpointer("runs/b", continue_from=of_ray).start(model, continue_from=of_ray)
    Checkpointer(continue_from=Best("loss", "min")).start(model, continue_from=Best("loss", "max"))
    Checkpointer(continue_from=3.5)  # type: ignore[arg-type]


def driver(model: nn.Module) -> None:
    """What a driver calls."""
    checkpointer = Checkpointer()
    last: int | None = checkpointer.index_of_last_checkpoint()
    path: str | None = checkpointer.path_to_last_checkpoint()
    indices: list[int] = checkpointer.list_existing_checkpoint_indices()
    prior: int | None = checkpointer.index_of_last_checkpoint_prior_to(3)
    loaded: LoadedCheckpoint = checkpointer.read(last)
    tensors: dict[str, torch.Tensor] = loaded.model
    model = checkpointer.load(model, path, device="cpu", strict=False)
    model = ray_imuckpt.load(model, checkpointer.path_to_checkpoint(3), progress=False)
    pruned: list[int] = checkpointer.prune(keep_last=1, keep_best=("loss", "min"), dry_run=True)
    checkpointer.verify(3)
    del indices, prior, tensors, pruned


class Net(nn.Module):
    """A model with a method of its own."""

    def described(self) -> str:
        """Return what it is."""
        return "a net"


def own_types(net: Net, adam: torch.optim.Adam, perhaps: torch.optim.SGD | None) -> None:
    """Objects come back as what they are, so that a loop needs no casts."""
    checkpointer = Checkpointer()
    model, optimizer, _, start_epoch, _ = checkpointer.start(net, adam, device="cpu", scaler=1)
    assert_type(model, Net)
    assert_type(optimizer, torch.optim.Adam)
    assert_type(start_epoch, int)
    assert_type(checkpointer.start(net), Start[Net, None])
    assert_type(checkpointer.start(net, None, strict=False).optimizer, None)
    assert_type(checkpointer.start(net, perhaps).optimizer, torch.optim.SGD | None)
    assert_type(checkpointer.load(net, 3), Net)
    assert_type(checkpointer.load(net, Best("loss", "min")), Net)
    assert_type(ray_imuckpt.load(net, "runs/a/checkpoint=3"), Net)
