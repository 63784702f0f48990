"""The live objects that a checkpoint is restored into, each as a `Restorable`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.state.kinds import Undo, kind_of
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut, LiveModel, SavedModel
from ray_imuckpt.state.objects import check_class, may_be_sharded
from ray_imuckpt.state.optimizer import LiveOptimizer, OptimizerState
from ray_imuckpt.state.random_state import (
    apply_random,
    check_random,
    seed_new_rank,
    take_random,
)
from ray_imuckpt.state.restorable import Filled, Memory, Phase


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
        """See `Restorable.covers`."""
        return frozenset(f"model.{name}" for name in self._saved.names)

    def check(self) -> LeftOut:
        """See `Restorable.check`."""
        return self._live.check(self._saved, strict=self._strict)

    def memory(self) -> Memory:
        """Move the model to its device, and return its tensors; see `Restorable.memory`."""
        if self._device is not None:
            self._live = LiveModel(self._model.to(self._device))
        return self._live.memory(self._saved.tensors)

    def apply(self, filled: Filled) -> None:
        """See `Restorable.apply`."""
        self._live.apply(filled.model)

    def undo(self) -> bool:
        """Keep what was read: nothing is kept of the old bytes, and the error says so already."""
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
        """See `Restorable.check`."""
        if self._saved is None:
            raise StateMismatchError(
                "The checkpoint holds no optimizer state.",
                hint="Pass optimizer=None to start() to begin with a fresh optimizer.",
            )
        self._live.check(self._saved)
        return LeftOut()

    def memory(self) -> Memory:
        """See `Restorable.memory`."""
        return self._live.memory(self._saved) if self._saved is not None else {}

    def apply(self, filled: Filled) -> None:
        """See `Restorable.apply`."""
        if filled.optimizer is not None:
            self._live.apply(filled.optimizer, self._layouts, keep_options=self._keep_options)

    def undo(self) -> bool:
        """Keep what was read, as `RestorableModel.undo` does."""
        return True


class SavedObject(NamedTuple):
    """What was saved of an object: its state, and the name of its class where that is known."""

    state: Any
    class_name: str | None


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
        self._value = value
        self._kind = kind_of(value)
        self._saved = saved
        self._layouts = layouts
        self._strict = strict
        self._undo: Undo | None = None

    def check(self) -> LeftOut:
        """See `Restorable.check`."""
        if self._strict:
            check_class(self._value, self._saved.class_name, self.name)
        return self._kind.check(self._value, self._saved.state, self.name, strict=self._strict)

    def memory(self) -> Memory:
        """Return nothing: its state has been read already."""
        return {}

    def apply(self, filled: Filled) -> None:
        """See `Restorable.apply`; what the object raises becomes an error that names it."""
        del filled
        self._undo = self._kind.undo(self._value)
        try:
            self._kind.apply(self._value, self._saved.state, self._layouts)
        except ImuckptError:
            raise
        except Exception as error:
            raise StateMismatchError(
                f"{self.name!r}, a {type(self._value).__name__}, did not take the state that was "
                f"saved: {type(error).__name__}: {error}",
                hint="Build it as it was when it was saved, or leave it out of start().",
            ) from error

    def undo(self) -> bool:
        """See `Restorable.undo`."""
        if self._undo is None:
            return False
        self._undo()
        return True


class RestorableRandom:
    """The random generators of this process.

    A rank that the checkpoint does not know seeds them; see `ray_imuckpt.state.random_state`.

    Args:
        states: What `take_random` gave, on each rank that saved.
        rank: This rank.
        needs_cuda: Whether the state of a CUDA device needs one here.
    """

    name = "random generators"
    phase = Phase.RANDOM
    covers: frozenset[str] = frozenset()  # every checkpoint holds them

    def __init__(self, states: Sequence[dict[str, Any]], rank: int, *, needs_cuda: bool) -> None:
        self._states = states
        self._rank = rank
        self._needs_cuda = needs_cuda
        self._before: dict[str, Any] = {}

    def check(self) -> LeftOut:
        """See `Restorable.check`."""
        if self._rank >= len(self._states):
            return LeftOut()
        state = self._states[self._rank]
        check_random(state, self._rank)
        cuda = state.get("cuda")
        if self._needs_cuda and cuda and not torch.cuda.is_available():
            raise StateMismatchError(
                f"The checkpoint holds the random state of {len(cuda)} CUDA device(s), and this "
                "rank has none.",
                rank=self._rank,
                hint="Run it where there is a GPU. To go on without, with other random numbers, "
                "pass strict=False.",
            )
        return LeftOut()

    def memory(self) -> Memory:
        """Return nothing: the state has been read already."""
        return {}

    def apply(self, filled: Filled) -> None:
        """See `Restorable.apply`."""
        del filled
        self._before = take_random()
        if self._rank < len(self._states):
            apply_random(self._states[self._rank])
        else:
            seed_new_rank(self._states[0], self._rank)

    def undo(self) -> bool:
        """See `Restorable.undo`."""
        apply_random(self._before)
        return True


class SeededGenerator:
    """A generator in ``per_rank`` of a rank that the checkpoint does not know.

    Args:
        name: What errors call it.
        generator: The generator.
        seed: Seeds it; see `ray_imuckpt.state.random_state`.
    """

    phase = Phase.TRIED
    covers: frozenset[str] = frozenset()

    def __init__(self, name: str, generator: Any, seed: Callable[[], None]) -> None:
        self.name = name
        self._generator = generator
        self._seed = seed
        self._undo: Undo | None = None

    def check(self) -> LeftOut:
        """Return nothing: any generator can be seeded."""
        return LeftOut()

    def memory(self) -> Memory:
        """Return nothing: there are no bytes to read."""
        return {}

    def apply(self, filled: Filled) -> None:
        """See `Restorable.apply`."""
        del filled
        self._undo = kind_of(self._generator).undo(self._generator)
        self._seed()

    def undo(self) -> bool:
        """See `Restorable.undo`."""
        if self._undo is None:
            return False
        self._undo()
        return True
