"""Who saves and restores the state of a gang: ours, and `torch.distributed.checkpoint`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ray_imuckpt import Checkpointer

OURS, DCP = "ray_imuckpt", "dcp.async_save"


class Contender(Protocol):
    """Saves a model and its optimizer, and restores them in place; every rank calls each method."""

    def begin(self) -> None:
        """Begin a save, and return when training may go on."""

    def end(self) -> None:
        """Return when it is durable."""

    def restore(self) -> None:
        """Restore what was saved last, as a gang does that has just begun."""


class Ours:
    """`Checkpointer`.

    Args:
        url: The run directory.
        model: What is saved and restored.
        optimizer: The same.
        policy: More arguments of `Checkpointer`.
    """

    def __init__(
        self, url: str, model: nn.Module, optimizer: torch.optim.Optimizer, **policy: Any
    ) -> None:
        self._new: Callable[[], Checkpointer] = lambda: Checkpointer(url, progress=False, **policy)
        self._model, self._optimizer, self._epoch = model, optimizer, 0
        self._checkpointer = self._new()
        self._checkpointer.start(model, optimizer, continue_from="none")

    def begin(self) -> None:
        """Implement `Contender.begin`."""
        self._epoch += 1
        self._checkpointer.checkpoint(self._epoch, model=self._model, optimizer=self._optimizer)

    def end(self) -> None:
        """Implement `Contender.end`."""
        self._checkpointer.wait()

    def restore(self) -> None:
        """Implement `Contender.restore`."""
        self._new().start(self._model, self._optimizer)


class Dcp:
    """`dcp.async_save` and `dcp.load`, by the state dicts that its documentation recommends.

    Args:
        url: Of a local directory.
        model: What is saved and restored.
        optimizer: The same.
    """

    def __init__(self, url: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._path = Path(url)
        self._model, self._optimizer = model, optimizer
        self._pending: Any = None

    def begin(self) -> None:
        """Implement `Contender.begin`."""
        if dist.get_rank() == 0:
            shutil.rmtree(self._path, ignore_errors=True)
        model, optimizer = get_state_dict(self._model, self._optimizer)
        state = {"model": model, "optimizer": optimizer}
        self._pending = dcp.async_save(state, checkpoint_id=str(self._path))

    def end(self) -> None:
        """Implement `Contender.end`; its files are synced by default."""
        self._pending.result()

    def restore(self) -> None:
        """Implement `Contender.restore`."""
        model, optimizer = get_state_dict(self._model, self._optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=str(self._path))
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


CONTENDERS: Mapping[str, Callable[..., Contender]] = {OURS: Ours, DCP: Dcp}
