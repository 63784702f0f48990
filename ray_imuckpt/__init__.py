"""Checkpoints for PyTorch on Ray: what to save, how to name it, where it goes, how to come back.

>>> checkpointer = Checkpointer("runs/attitude", save_every=5)  # doctest: +SKIP
>>> model, optimizer, log, start_epoch, other = checkpointer.start(model, optimizer)
>>> for epoch in range(start_epoch, 101):
...     log.append(train_one_epoch(model, optimizer))
...     checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log)

Each name is imported when it is first used: the command ``imuckpt`` lives in this package too, and
answers ``--help`` without the seconds that torch takes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ray_imuckpt._version import __version__

if TYPE_CHECKING:
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
    from ray_imuckpt.migration import Imported, import_checkpoint
    from ray_imuckpt.options import Best, Retention, Retries
    from ray_imuckpt.saving.pending import PendingSave
    from ray_imuckpt.schedules import PlateauDetector
    from ray_imuckpt.source import load

__all__ = [
    "Best",
    "CheckpointNotFoundError",
    "Checkpointer",
    "CorruptCheckpointError",
    "GangBrokenError",
    "Imported",
    "ImuckptError",
    "LoadedCheckpoint",
    "PendingSave",
    "PlateauDetector",
    "Retention",
    "Retries",
    "SaveFailedError",
    "Start",
    "StateMismatchError",
    "StorageError",
    "UnsupportedFormatError",
    "UnsupportedStateError",
    "__version__",
    "import_checkpoint",
    "load",
]

_ELSEWHERE = {  # name to the module that it is imported from; the errors are all of one
    "Best": "ray_imuckpt.options",
    "Checkpointer": "ray_imuckpt.checkpointer",
    "Imported": "ray_imuckpt.migration",
    "LoadedCheckpoint": "ray_imuckpt.loading.stored",
    "PendingSave": "ray_imuckpt.saving.pending",
    "PlateauDetector": "ray_imuckpt.schedules",
    "Retention": "ray_imuckpt.options",
    "Retries": "ray_imuckpt.options",
    "Start": "ray_imuckpt.loading.start",
    "import_checkpoint": "ray_imuckpt.migration",
    "load": "ray_imuckpt.source",
}
_PUBLIC_MODULES = ("errors", "schedules")

if not TYPE_CHECKING:  # a type checker would take it for a module that has every name

    def __getattr__(name: str) -> Any:
        """Return a public name, imported at its first use."""
        if name in _PUBLIC_MODULES:
            return importlib.import_module(f"ray_imuckpt.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_ELSEWHERE.get(name, "ray_imuckpt.errors"))
        value = globals()[name] = getattr(module, name)
        return value


def __dir__() -> list[str]:
    """Return all names, those that were not used yet among them."""
    return sorted({*globals(), *__all__, *_PUBLIC_MODULES})
