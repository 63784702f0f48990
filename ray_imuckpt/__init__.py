"""Checkpoints for PyTorch on Ray: what to save, how to name it, where it goes, how to come back.

>>> checkpointer = Checkpointer("runs/attitude", save_every=5)  # doctest: +SKIP
>>> model, optimizer, log, start_epoch, other = checkpointer.start(model, optimizer)
>>> for epoch in range(start_epoch, 101):
...     log.append(train_one_epoch(model, optimizer))
...     checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log)
"""

from ray_imuckpt._version import __version__
from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    GangBrokenError,
    ImuckptError,
    SaveFailedError,
    StateMismatchError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedStateError,
)
from ray_imuckpt.loading.start import Start
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.saving.saver import PendingSave
from ray_imuckpt.schedules import PlateauDetector
from ray_imuckpt.source import load

__all__ = [
    "CheckpointNotFoundError",
    "Checkpointer",
    "CorruptCheckpointError",
    "GangBrokenError",
    "ImuckptError",
    "LoadedCheckpoint",
    "PendingSave",
    "PlateauDetector",
    "SaveFailedError",
    "Start",
    "StateMismatchError",
    "StorageError",
    "UnsupportedFormatError",
    "UnsupportedStateError",
    "__version__",
    "load",
]
