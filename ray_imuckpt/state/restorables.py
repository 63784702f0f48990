"""Model, optimizer and other live objects, each as a `Restorable`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.state.kinds import Undo, kind_of
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut, LiveModel, SavedModel
from ray_imuckpt.state.objects import check_class, may_be_sharded
from ray_imuckpt.state.optimizer import LiveOptimizer, OptimizerState
from ray_imuckpt.state.restorable import Filled, Memory, Phase
from ray_imuckpt.state.spread import memory_of


class RestorableModel:
    """The model.

    Args:
        model: The model, wrapped or bare.
        saved: What was saved of it, where its tensors lie.
        device: Where it is moved once everything is checked, ``None``: it stays.
        strict: See `LiveModel.check`.
    """

    name = "model"
    phase = Phase.FILLED

    def __init__(
        self,
        model: nn.Module,
        saved: SavedModel,
        device: torch.device | str | None,
        *,
        strict: bool,
    ) -> None:
        self._model = model
        self._saved = saved
        self._device = device
        self._strict = strict
        self._live = LiveModel(model)

    @property
    def covers(self) -> frozenset[str]:
        """Return the names of its tensors and extra state; see `Restorable.covers`."""
        return frozenset(f"model.{name}" for name in self._saved.names)

    def check(self) -> LeftOut:
        """Check what was saved; see `Restorable.check`."""
        return self._live.check(self._saved, strict=self._strict)

    def memory(self) -> Memory:
        """Move the model to its device, and return its tensors; see `Restorable.memory`."""
        if self._device is not None:
            self._live = LiveModel(self._model.to(self._device))
        return self._live.memory(self._saved.tensors)

    def apply(self, filled: Filled) -> None:
        """Apply what was saved; see `Restorable.apply`."""
        self._live.apply(filled.model)

    def undo(self) -> bool:
        """Keep what was read: nothing is kept of the old bytes, and the error says so."""
        return True


class RestorableOptimizer:
    """The optimizer of the model's parameters.

    Args:
        optimizer: The optimizer, wrapped or bare.
        model: The model.
        saved: What was saved of it, where its tensors lie; ``None`` if it was not saved.
        layouts: How the parameters lay in memory when they were saved.
        keep_options: Whether it keeps its own learning rate and other options.
    """

    name = "optimizer"
    phase = Phase.FILLED
    covers: frozenset[str] = frozenset()  # what is checked is that all of it was saved

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        saved: OptimizerState | None,
        layouts: SavedLayouts,
        *,
        keep_options: bool,
    ) -> None:
        self._live = LiveOptimizer(optimizer, model)
        self._saved = saved
        self._layouts = layouts
        self._keep_options = keep_options

    def check(self) -> LeftOut:
        """Check what was saved; see `Restorable.check`."""
        if self._saved is None:
            raise StateMismatchError(
                "The checkpoint holds no optimizer state.",
                hint="Pass optimizer=None to start() to begin with a fresh optimizer.",
            )
        self._live.check(self._saved)
        return LeftOut()

    def memory(self) -> Memory:
        """Return its state's tensors; see `Restorable.memory`."""
        return self._live.memory(self._saved) if self._saved is not None else {}

    def apply(self, filled: Filled) -> None:
        """Apply what was saved; see `Restorable.apply`."""
        if filled.optimizer is not None:
            self._live.apply(filled.optimizer, self._layouts, keep_options=self._keep_options)

    def undo(self) -> bool:
        """Keep what was read, as `RestorableModel.undo` does."""
        return True


class SavedObject(NamedTuple):
    """The state of an object as it was saved.

    Attributes:
        state: The state.
        class_name: The name of the object's class, where that is known.
        later: Whether the state says where its tensors lie: they are read with the model's.
    """

    state: Any
    class_name: str | None
    later: bool = False


class RestorableObject:
    """An object that was passed by keyword or in ``per_rank``.

    Args:
        name: What errors call it.
        value: The object.
        saved: What was saved of it.
        layouts: How parameters lay in memory when they were saved.
        strict: Whether another class, and a model's missing and unexpected names, are errors.
        overlapping: Whether the model or the optimizer holds its tensors as well.
    """

    def __init__(
        self,
        name: str,
        value: Any,
        saved: SavedObject,
        layouts: SavedLayouts,
        *,
        strict: bool,
        overlapping: bool = False,
    ) -> None:
        self.name = name
        self.covers = frozenset({name})
        self.phase = Phase.SHARDED if may_be_sharded(value) else Phase.TRIED
        if overlapping:
            self.phase = Phase.OVERLAPPING
        elif saved.later:
            self.phase = Phase.FILLED
        self._value = value
        self._kind = kind_of(value)
        self._saved = saved
        self._layouts = layouts
        self._strict = strict
        self._undo: Undo | None = None

    def check(self) -> LeftOut:
        """Check what was saved; see `Restorable.check`."""
        if self._strict:
            check_class(self._value, self._saved.class_name, self.name)
        return self._kind.check(self._value, self._saved.state, self.name, strict=self._strict)

    def memory(self) -> Memory:
        """Return what takes a state that is read later; see `Restorable.memory`."""
        return memory_of(self._value, self._saved.state) if self._saved.later else {}

    def apply(self, filled: Filled) -> None:
        """Apply what was saved; what the object raises becomes an error that names it."""
        state = self._saved.state
        if self._saved.later:  # nothing is kept of what was read over
            state = filled.objects[self.name]
        else:
            self._undo = self._kind.undo(self._value)
        try:
            self._kind.apply(self._value, state, self._layouts)
        except ImuckptError:
            raise
        except Exception as error:
            raise StateMismatchError(
                f"{self.name!r}, a {type(self._value).__name__}, did not take the state that was "
                f"saved: {type(error).__name__}: {error}",
                hint="Build it as it was when it was saved, or leave it out of start().",
            ) from error

    def undo(self) -> bool:
        """Undo that; see `Restorable.undo`."""
        if self._undo is None:
            return False
        self._undo()
        return True
