"""The beginning of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets

ModelT = TypeVar("ModelT", bound=nn.Module)
OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer | None)

if TYPE_CHECKING:  # Python 3.10 refuses a generic NamedTuple; as a tuple, it can be subscripted

    class Start(NamedTuple, Generic[ModelT, OptimizerT]):
        """The objects and values that `Checkpointer.start` returns, with the types given."""

        model: ModelT
        optimizer: OptimizerT
        log: Any
        start_epoch: int
        other: dict[str, Any]

else:

    class Start(NamedTuple):
        """The objects and values that `Checkpointer.start` returns.

        Attributes:
            model: The model given, its state restored.
            optimizer: The optimizer given, its state restored.
            log: The training log so far.
            start_epoch: The first epoch to train.
            other: Everything saved by keyword; objects given to `start` are those, restored.
        """

        model: nn.Module
        optimizer: torch.optim.Optimizer | None
        log: Any
        start_epoch: int
        other: dict[str, Any]


def started(
    targets: Targets, loaded: LoadedCheckpoint | None
) -> Start[nn.Module, torch.optim.Optimizer | None]:
    """Return the objects given, and what they were continued from."""
    model, optimizer, other = targets.model, targets.optimizer, targets.other
    if loaded is None:
        return Start(model, optimizer, [], 1, dict(other))
    everything = {**other, **loaded.other, **targets.objects}
    return Start(model, optimizer, loaded.log, loaded.epoch + 1, everything)
