"""A metric over the epochs, for `plot`. Reads the manifests."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ray_imuckpt.cli.checking import DAMAGED, NEWER_FORMAT, Verdict
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)


@dataclass(frozen=True)
class Point:
    """The metric's value at an epoch; a finite number."""

    epoch: int
    value: float


@dataclass(frozen=True)
class Series:
    """A metric over the epochs.

    Attributes:
        metric: Its name.
        points: Its values, of the epochs that have a finite number for it.
        unread: The checkpoints that could not be read.
    """

    metric: str
    points: tuple[Point, ...]
    unread: tuple[Verdict, ...]


def series(directory: CheckpointDirectory, epochs: list[int], metric: str) -> Series:
    """Return the values of `metric` at `epochs`; what was deleted since is passed over.

    Raises:
        StorageError: One cannot be read.
    """
    points, unread = [], []
    for epoch in epochs:
        url = directory.path_to_checkpoint(epoch)
        try:
            value = directory.read(epoch).metrics.get(metric)
        except CorruptCheckpointError as error:
            unread.append(Verdict(epoch, url, DAMAGED, str(error)))
        except UnsupportedFormatError as error:
            unread.append(Verdict(epoch, url, NEWER_FORMAT, str(error)))
        except CheckpointNotFoundError:
            continue
        else:
            if isinstance(value, (int, float)) and abs(value) <= sys.float_info.max:
                points.append(Point(epoch, float(value)))
    return Series(metric, tuple(points), tuple(unread))
