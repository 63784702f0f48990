"""A look whether all ranks see the same storage: rank 0 puts a small file, they look for it."""

from __future__ import annotations

import contextlib

from ray_imuckpt import units
from ray_imuckpt.errors import StorageError
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import paths
from ray_imuckpt.storage import Storage

_PART = "probe"


def put(storage: Storage, epoch: int, save_id: str) -> bool:
    """Put the file, on rank 0; return False where that fails: the save itself will tell."""
    try:
        storage.put(_path(epoch, save_id), b"{}")
    except OSError:
        return False
    return True


def is_seen(gang: Gang, storage: Storage, epoch: int, save_id: str, *, sharded: bool) -> bool:
    """Return whether all ranks see what rank 0 has put, which is removed; a collective.

    Raises:
        StorageError: They do not, though they must: what is saved is `sharded`.
    """

    def look() -> tuple[None, bytes]:
        try:
            storage.size(_path(epoch, save_id))
        except OSError:
            return None, b""
        return None, storage.url.encode()  # what is wrong is to be told alike on all ranks

    seen = gang.exchange(look)[1]
    if gang.rank == 0:
        with contextlib.suppress(OSError):
            storage.delete(_path(epoch, save_id))
    blind = [rank for rank, message in enumerate(seen) if not message]
    if blind and sharded:
        raise StorageError(
            f"{units.ranks(blind).capitalize()} cannot see what rank 0 "
            "writes: the directory is not the same storage there. A model that is sharded is "
            "written by all ranks.",
            url=seen[0].decode() or None,
            rank=blind[0],
            hint="Give a `dir` that all ranks share: a network file system, or an object store.",
        )
    return not blind


def _path(epoch: int, save_id: str) -> str:
    name = paths.data_file_name(_PART, save_id, "json")
    return f"{paths.checkpoint_name(epoch)}/{name}"
