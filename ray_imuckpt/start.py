"""What a run begins with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn


class Start(NamedTuple):
    """What `Checkpointer.start` returns.

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
