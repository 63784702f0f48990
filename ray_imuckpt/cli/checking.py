"""The verdicts of `verify`: which checkpoints are sound. Reads every byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)

SOUND = "sound"
DAMAGED = "damaged"
NEWER_FORMAT = "newer format"
_STATUS = {SOUND: 0, DAMAGED: 1, NEWER_FORMAT: 2}


@dataclass(frozen=True)
class Verdict:
    """The result of reading one checkpoint.

    Attributes:
        epoch: Its epoch.
        state: ``sound``, ``damaged`` or ``newer format``.
        problem: What is wrong, in words; empty if it is sound.
    """

    epoch: int
    state: str
    problem: str = ""


def verdicts(
    directory: CheckpointDirectory, epochs: Iterable[int], *, listed: bool
) -> Iterator[Verdict]:
    """Yield a verdict for each of `epochs`, as soon as it is read.

    Args:
        directory: The run directory.
        epochs: The epochs.
        listed: Whether they come from a listing: one that was deleted since is passed over.

    Raises:
        CheckpointNotFoundError: One of them is not committed, and was not listed.
        StorageError: One cannot be read.
    """
    for epoch in epochs:
        try:
            directory.verify(epoch)
        except CorruptCheckpointError as error:
            yield Verdict(epoch, DAMAGED, str(error))
        except UnsupportedFormatError as error:
            yield Verdict(epoch, NEWER_FORMAT, str(error))
        except CheckpointNotFoundError:
            if not listed:
                raise
        else:
            yield Verdict(epoch, SOUND)


def status(states: Iterable[str]) -> int:
    """Return the exit status for the states of all checkpoints: that of the worst."""
    return max((_STATUS[state] for state in states), default=0)
