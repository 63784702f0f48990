"""Files that name a checkpoint directory elsewhere, and how far they are followed.

Who may write a pointer could have this process send requests, and its credentials, wherever he
likes. So a pointer leads to where its reader is already: to the file system that holds the pointer,
to that of the reader's own directory, or to a local path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ray_imuckpt.encoding import strictjson
from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.errors import CorruptCheckpointError, ImuckptError
from ray_imuckpt.options import Opening
from ray_imuckpt.repository import paths
from ray_imuckpt.storage import NotAFileError, Storage, open_storage
from ray_imuckpt.storage.names import join, masked

_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)")
_LOCAL = ("file", "local")
_AS_USUAL = Opening()


@prepared
@dataclass(frozen=True)
class _Pointer:
    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    sibling: Annotated[str, Meta(max_length=100)] | None = None


def pointed_at(
    directory: Storage, opening: Opening = _AS_USUAL, home: Storage | None = None
) -> Storage | None:
    """Return the directory that a pointer in `directory` names; ``None`` when there is no pointer.

    Args:
        directory: Where the pointer would be.
        opening: How the directory that it names is opened.
        home: The reader's run directory, to whose file system a pointer may lead.

    Raises:
        CorruptCheckpointError: The pointer is damaged.
        ImuckptError: It leads to another file system.
    """
    where = join(directory.url, paths.POINTER)
    try:
        pointer = msgspec.convert(strictjson.loads(directory.get(paths.POINTER)), _Pointer)
        return _followed(pointer, directory, opening, home)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, NotAFileError) as error:
        raise CorruptCheckpointError(
            f"The pointer to a checkpoint is cut or altered: {error}.",
            url=where,
            hint="Give the path of the directory checkpoint=<epoch> itself.",
        ) from error


def _followed(
    pointer: _Pointer, directory: Storage, opening: Opening, home: Storage | None
) -> Storage:
    if b"\0" in os.fsencode(pointer.url):  # which raises where no name of a file can hold it
        raise ValueError("its url holds a zero byte")
    if pointer.sibling is not None and paths.parse_checkpoint_name(pointer.sibling) is not None:
        # First where the pointer is: the directories may have been moved together.
        return directory.parent().child(pointer.sibling)
    allowed = {_origin(directory.url), None if home is None else _origin(home.url), ""}
    if _origin(pointer.url) not in allowed - {None}:
        raise ImuckptError(
            "The pointer to a checkpoint leads to another file system: "
            f"{masked(pointer.url):.300}.",
            url=join(directory.url, paths.POINTER),
            hint="If that is where the checkpoints are, say so: "
            "Checkpointer(<their directory>).read(...), or the URL itself instead of the pointer.",
        )
    return open_storage(pointer.url, opening.options, opening.retries)


def _origin(url: str) -> str | None:
    """Return the file system of a URL: scheme and host or bucket, ``""`` for a local one."""
    if "::" in url:  # of several, one inside the other
        return None
    found = _ORIGIN.match(url)
    if found is None:
        return "" if "://" not in url else None
    scheme, host = found.groups()
    return "" if scheme in _LOCAL else f"{scheme}://{host}"
