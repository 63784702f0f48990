"""The verdicts of `verify`: which checkpoints are sound. Reads every byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ray_imuckpt.cli.targets import Target
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.repository.files import verify, while_it_changes

SOUND = "sound"
DAMAGED = "damaged"
NEWER_FORMAT = "newer format"
_STATUS = {SOUND: 0, DAMAGED: 1, NEWER_FORMAT: 2}


@dataclass(frozen=True)
class Verdict:
    """The result of reading one checkpoint.

    Attributes:
        epoch: Its epoch; ``None`` where neither its manifest nor its name tells it.
        url: Its directory.
        state: ``sound``, ``damaged`` or ``newer format``.
        problem: What is wrong, in words; empty if it is sound.
    """

    epoch: int | None
    url: str
    state: str
    problem: str = ""


def verdicts(targets: Iterable[Target]) -> Iterator[Verdict]:
    """Yield a verdict for each of `targets`, as soon as it is read.

    Args:
        targets: The checkpoints; one of a listing that was deleted since is passed over.

    Raises:
        CheckpointNotFoundError: One of them is not committed, and is of no listing.
        StorageError: One cannot be read.
    """
    for target in targets:
        try:
            epoch = while_it_changes(partial(_verified, target))
        except (CorruptCheckpointError, UnsupportedFormatError) as error:
            yield unreadable(target.epoch, target.directory.url, error)
        except CheckpointNotFoundError:
            if not target.listed:
                raise
        else:
            yield Verdict(epoch, target.directory.url, SOUND)


def unreadable(
    epoch: int | None, url: str, error: CorruptCheckpointError | UnsupportedFormatError
) -> Verdict:
    """Return the verdict on a checkpoint that could not be read for this error."""
    damaged = isinstance(error, CorruptCheckpointError)
    return Verdict(epoch, url, DAMAGED if damaged else NEWER_FORMAT, str(error))


def _verified(target: Target) -> int:
    """Read every byte of a checkpoint, and return its epoch."""
    loaded = target.open()
    verify(loaded.storage, "", loaded.manifest)
    return loaded.epoch


def status(states: Iterable[str]) -> int:
    """Return the exit status for the states of all checkpoints: that of the worst."""
    return max((_STATUS[state] for state in states), default=0)
