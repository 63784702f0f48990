"""The beginning of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets


class Start(NamedTuple):
    """The objects and values that `Checkpointer.start` returns.

    Attributes:
        model: The model given, its state restored.
        optimizer: The optimizer given, its state restored.
        log: The training log so far.
        start_epoch: The first epoch to train.
        other: Everything saved by keyword; objects given to `start` are those objects, restored.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    log: Any
    start_epoch: int
    other: dict[str, Any]


def started(targets: Targets, loaded: LoadedCheckpoint | None) -> Start:
    """Return the objects given, and what they were continued from."""
    model, optimizer, other = targets.model, targets.optimizer, targets.other
    if loaded is None:
        return Start(model, optimizer, [], 1, dict(other))
    everything = {**other, **loaded.other, **targets.objects}
    return Start(model, optimizer, loaded.log, loaded.epoch + 1, everything)
