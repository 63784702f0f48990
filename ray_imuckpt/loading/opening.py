"""A stored checkpoint, opened: in its directory, or where a pointer leads."""

from __future__ import annotations

from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Opening
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.storage import NotAFileError, Storage
from ray_imuckpt.storage.names import join

_AS_USUAL = Opening()
_POINTERS = 4  # one after the other; ours leads to the checkpoint itself


def open_checkpoint(
    storage: Storage,
    manifest: Manifest,
    gang: Gang | None = None,
    progress: Progress | None = None,
    ahead: bytes = b"",
) -> LoadedCheckpoint:
    """Return the checkpoint of `manifest`; nothing of it is read yet.

    Args:
        storage: Its directory, which only rank 0 needs to see.
        manifest: Its commit record.
        gang: The gang that opens it together; every part must then be asked for on every rank,
            in the same order. ``None``: this process alone.
        progress: What this rank reads into live memory is counted here.
        ahead: See `ray_imuckpt.loading.reader.Reader`.
    """
    reader = Reader(storage, manifest, gang or Gang(), progress, ahead)
    return LoadedCheckpoint(storage, manifest, reader)


def open_directory(
    storage: Storage,
    opening: Opening = _AS_USUAL,
    home: Storage | None = None,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Return the checkpoint whose directory this is, or that a pointer in it names.

    Args:
        storage: A directory.
        opening: How the directory that a pointer names is opened.
        home: The reader's run directory, to whose file system a pointer may lead.
        progress: As for `open_checkpoint`.

    Raises:
        CheckpointNotFoundError: There is none.
        CorruptCheckpointError: Its manifest, or the pointer, is damaged.
    """
    for _ in range(_POINTERS):
        url = join(storage.url, paths.MANIFEST)
        try:
            data = storage.get(paths.MANIFEST)
        except (FileNotFoundError, NotADirectoryError) as error:
            target = pointed_at(storage, opening, home)
            if target is None:
                raise CheckpointNotFoundError(
                    "There is no committed checkpoint here: the directory holds no manifest.",
                    url=storage.url,
                    hint="Give the path of a directory checkpoint=<epoch>; of a run's directory, "
                    "Checkpointer(dir).load(model) takes the last one.",
                ) from error
            storage = target
        except NotAFileError as error:
            raise CorruptCheckpointError(f"The manifest {error}.", url=url) from error
        else:
            epoch = paths.epoch_of_url(storage.url)
            manifest = Manifest.from_bytes(data, url, epoch)
            return open_checkpoint(storage, manifest, progress=progress)
    raise CorruptCheckpointError(
        "Pointers to a checkpoint lead to each other.",
        url=storage.url,
        hint="Give the path of the directory checkpoint=<epoch> itself.",
    )
