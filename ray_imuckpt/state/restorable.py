"""A live object that a checkpoint is restored into, as a restore sees it: the seam of all of them.

A restore goes through one list of `Restorable`, four times: check, memory, apply, undo. Until all
are checked nothing changes; then what can be undone is applied before what cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch

from ray_imuckpt.encoding.tensors import Share, TensorKey
from ray_imuckpt.state.live import LeftOut, SavedModel
from ray_imuckpt.state.optimizer import OptimizerState

Memory = dict[TensorKey, torch.Tensor | Share]
"""What takes the bytes of stored tensors, on any device; of a sharded tensor its part here does."""


class Filled(NamedTuple):
    """The states whose tensors are read last: into the memory asked for, or new.

    Attributes:
        model: The model's.
        optimizer: The optimizer's, where it is restored.
        objects: By name those of other objects that are spread over the ranks.
    """

    model: SavedModel = SavedModel({}, {})
    optimizer: OptimizerState | None = None
    objects: Mapping[str, Any] = MappingProxyType({})


class Phase(IntEnum):
    """The phases in which objects are applied, one after the other."""

    TRIED = 0
    """It can only be tried whether a state fits, and that can be undone: it goes first."""
    SHARDED = 1
    """A further model or optimizer: its loading may meet the other ranks, few can be undone."""
    FILLED = 2
    """The model, its optimizer, or what is spread as they are: bytes are read into their memory."""
    OVERLAPPING = 3
    """It has tensors of these two as well, of which the rank state counts: after them."""
    RANDOM = 4
    """Random generators, from which everything before may draw."""


class Restorable(Protocol):
    """A live object, and what was saved of it."""

    @property
    def name(self) -> str:
        """Return what errors call it."""

    @property
    def phase(self) -> Phase:
        """Return when it is applied."""

    @property
    def covers(self) -> frozenset[str]:
        """Return the names of what is overwritten, to be compared with another checkpoint's."""

    def check(self) -> LeftOut:
        """Raise unless what was saved fits, as far as that can be told; nothing is changed.

        Returns:
            What is not restored; nothing of it where that would be an error.

        Raises:
            StateMismatchError: It says what does not fit.
        """

    def memory(self) -> Memory:
        """Return the tensors that the bytes may be read into; the object may be moved for it."""

    def apply(self, filled: Filled) -> None:
        """Restore the object, in place.

        Args:
            filled: The tensors of model and optimizer; empty before `Phase.FILLED`.

        Raises:
            StateMismatchError: The object refused what was saved.
            Exception: Whatever the object's own loading raises.
        """

    def undo(self) -> bool:
        """Restore what it was before `apply`, whether that succeeded or not.

        Returns:
            False where that is not possible, so that the error has to name the object.

        Raises:
            Exception: Whatever the object's own loading raises; this counts as False.
        """


def all_left_out(parts: Iterable[LeftOut]) -> LeftOut:
    """Return what several objects leave out, as one."""
    parts = list(parts)
    return LeftOut(
        tuple(name for part in parts for name in part.missing),
        tuple(name for part in parts for name in part.unexpected),
    )
