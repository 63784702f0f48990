"""The deletions of `prune`. Deletes files."""

from __future__ import annotations

from dataclasses import dataclass

from ray_imuckpt.cli.listing import LeftoverFiles, counted
from ray_imuckpt.errors import located
from ray_imuckpt.options import Retention
from ray_imuckpt.repository import leftovers, retention
from ray_imuckpt.storage import Storage


@dataclass(frozen=True)
class Pruned:
    """The checkpoints and leftovers that were deleted.

    Attributes:
        epochs: The epochs of the checkpoints.
        leftovers: How many leftovers went with them.
        dry_run: Whether nothing was, and this is what would be.
    """

    epochs: tuple[int, ...]
    leftovers: LeftoverFiles
    dry_run: bool


def prune(storage: Storage, rules: Retention, *, dry_run: bool) -> Pruned:
    """Delete the checkpoints that no rule keeps, and leftovers, as `retention.prune` does.

    Raises:
        CorruptCheckpointError: There are checkpoints, but none is sound; then none is deleted.
        StorageError: The directory cannot be listed, or a file not be deleted.
    """
    with located(storage.url):
        left = leftovers.sweep(storage, dry_run=dry_run)
        epochs = retention.prune(storage, rules, set(), dry_run=dry_run)
    return Pruned(tuple(epochs), counted(left), dry_run)
