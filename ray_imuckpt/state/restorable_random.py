"""Random generators, each kind as a `Restorable`: restored, or seeded where nothing was saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.kinds import Undo, kind_of
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.state.random_state import (
    apply_random,
    check_random,
    seed_new_rank,
    take_random,
)
from ray_imuckpt.state.restorable import Filled, Memory, Phase


class SavedRandom(NamedTuple):
    """The random states of two of the ranks that saved, as `take_random` gave them.

    Attributes:
        here: On the rank of this number; ``None`` where there was none.
        zero: On rank 0; ``None`` of an imported checkpoint, which has none.
        rank: This rank.
    """

    here: dict[str, Any] | None
    zero: dict[str, Any] | None
    rank: int

    def apply(self) -> None:
        """Put the generators of this process where they were saved, or seed those of a new rank."""
        if self.here is not None:
            apply_random(self.here)
        elif self.zero is not None:
            seed_new_rank(self.zero, self.rank)


class RestorableRandom:
    """The random generators of this process.

    A rank that the checkpoint does not know seeds them; see `ray_imuckpt.state.random_state`. Where
    nothing was saved they stay as they are.

    Args:
        saved: What was saved of them.
        needs_cuda: Whether the state of a CUDA device needs one here.
    """

    name = "random generators"
    phase = Phase.RANDOM
    covers: frozenset[str] = frozenset()  # every checkpoint holds them

    def __init__(self, saved: SavedRandom, *, needs_cuda: bool) -> None:
        self._saved = saved
        self._needs_cuda = needs_cuda
        self._before: dict[str, Any] = {}

    def check(self) -> LeftOut:
        """Check what was saved; see `Restorable.check`."""
        state = self._saved.here
        if state is None:
            return LeftOut()
        check_random(state, self._saved.rank)
        cuda = state.get("cuda")
        if self._needs_cuda and cuda and not torch.cuda.is_available():
            raise StateMismatchError(
                f"The checkpoint holds the random state of {len(cuda)} CUDA device(s), and this "
                "rank has none.",
                rank=self._saved.rank,
                hint="Run it where there is a GPU. To go on without, with other random numbers, "
                "pass strict=False.",
            )
        return LeftOut()

    def memory(self) -> Memory:
        """Return nothing: the state has been read already."""
        return {}

    def apply(self, filled: Filled) -> None:
        """Apply what was saved; see `Restorable.apply`."""
        del filled
        self._before = take_random()
        self._saved.apply()

    def undo(self) -> bool:
        """Undo that; see `Restorable.undo`."""
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
        """Apply what was saved; see `Restorable.apply`."""
        del filled
        self._undo = kind_of(self._generator).undo(self._generator)
        self._seed()

    def undo(self) -> bool:
        """Undo that; see `Restorable.undo`."""
        if self._undo is None:
            return False
        self._undo()
        return True
