"""The habits of the file systems that fsspec reaches, as far as our promises depend on it.

Whether a class has an operation of its own is told by the methods that fsspec asks its authors to
override; for asynchronous ones these begin with an underscore.
The rules, and what each costs: docs/adr/0021-file-systems-that-publish-while-writing.md.
"""

from __future__ import annotations

import contextlib
import inspect
import posixpath
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from ray_imuckpt.storage.engines.protocol import Kind

_OBJECT_STORES = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "lakefs", "memory"}) | {
    *("oci", "ocilake", "oss", "s3", "s3a", "tos", "tosfs")
}
# Where pyarrow's `move` deletes the target and then renames: between the two there is no file.
_REPLACED_BY_DELETING = frozenset({"arrow_hdfs", "hdfs"})


_AZURE = frozenset({"abfs", "abfss", "adl", "az"})


def kind(filesystem: fsspec.AbstractFileSystem) -> Kind:
    """Return how a file system publishes.

    Known object stores are told by their protocol. Of the others, one that renames by itself is
    like a disk, and one that copies by itself but has no rename is an object store: no protocol of
    files comes without a rename, and no store of objects has one.
    """
    if _protocols(filesystem) & _OBJECT_STORES:
        return Kind.OBJECTS
    if type(filesystem).mv is not fsspec.AbstractFileSystem.mv or _renames_later(filesystem):
        return Kind.FILES
    return Kind.OBJECTS if copies_itself(filesystem) else Kind.UNKNOWN


def rename(filesystem: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    """Rename a file over another on a file system that is like a disk."""
    if _renames_later(filesystem):
        sync(filesystem.loop, filesystem._mv, source, target)  # noqa: SLF001 - see above
    else:
        filesystem.mv(source, target)


def replaces_atomically(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether a rename over a file leaves no moment without one, as far as is known."""
    return not _protocols(filesystem) & _REPLACED_BY_DELETING


def copies_itself(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether ``cp_file`` happens inside the store: the base classes have none."""
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._cp_file is not AsyncFileSystem._cp_file  # noqa: SLF001 - see above
    return type(filesystem).cp_file is not fsspec.AbstractFileSystem.cp_file


def create_keywords(filesystem: fsspec.AbstractFileSystem) -> dict[str, Any] | None:
    """Return what makes ``pipe_file`` refuse to replace a file, where the store decides that.

    fsspec's base class has the mode too, but looks first and writes then.
    """
    if speaks_azure(filesystem):
        return {"overwrite": False}
    method = type(filesystem).pipe_file
    inherited = fsspec.AbstractFileSystem.pipe_file
    if isinstance(filesystem, AsyncFileSystem):
        method = type(filesystem)._pipe_file  # noqa: SLF001 - see above
        inherited = AsyncFileSystem._pipe_file  # noqa: SLF001 - see above
    has_mode = "mode" in inspect.signature(method).parameters
    return {"mode": "create"} if has_mode and method is not inherited else None


def speaks_azure(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether it is adlfs."""
    return bool(_protocols(filesystem) & _AZURE)


def speaks_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether it is s3fs, which passes S3's own options on; pyarrow's client does not."""
    return "s3" in _protocols(filesystem) and not isinstance(filesystem, ArrowFSWrapper)


def is_s3fs(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether it has the calls of s3fs; others may have only its protocol."""
    return any(base.__module__.partition(".")[0] == "s3fs" for base in type(filesystem).__mro__)


def speaks_sftp(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether it is fsspec's own by paramiko; sshfs has another client."""
    return type(filesystem).__module__ == "fsspec.implementations.sftp"


def lists_itself(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether ``find`` is a listing of the store's own, no walk that passes over errors."""
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._find is not AsyncFileSystem._find  # noqa: SLF001 - see above
    return type(filesystem).find is not fsspec.AbstractFileSystem.find


def modified(entry: Mapping[str, Any]) -> float | None:
    """Return when the file of a listing was written; each file system has a name of its own."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "modified", "created"):
        value = entry.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def made_with(filesystem: fsspec.AbstractFileSystem) -> tuple[str, Mapping[str, Any]] | None:
    """Return scheme and options of a well-known class of file system, ``None`` for others.

    Told by the module of the very class: one that is derived from it may do as it likes.
    """
    scheme = {"s3fs": "s3", "gcsfs": "gs", "adlfs": "az"}.get(
        type(filesystem).__module__.partition(".")[0]
    )
    if scheme is None or filesystem.storage_args:
        return None
    return scheme, dict(filesystem.storage_options)


def unwrapped(
    filesystem: fsspec.AbstractFileSystem, path: str
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system behind caches and subdirectories, and the path on it.

    A cache would show records as they were; and only of the file system itself can be told what it
    is like.
    """
    while True:
        if isinstance(filesystem, CachingFileSystem):
            filesystem = filesystem.fs
        elif isinstance(filesystem, DirFileSystem):
            path = posixpath.join(filesystem.path, path.lstrip("/")) if filesystem.path else path
            filesystem = filesystem.fs
        else:
            inner = _synchronous(filesystem)
            if inner is None:
                return filesystem, path
            filesystem = inner


def _synchronous(filesystem: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem | None:
    """Return what fsspec's asynchronous wrapper holds."""
    try:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    except ImportError:  # it came with fsspec 2024.10
        return None
    return filesystem.sync_fs if isinstance(filesystem, AsyncFileSystemWrapper) else None


def _renames_later(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether the rename is a coroutine alone, as in sshfs, without a function."""
    return isinstance(filesystem, AsyncFileSystem) and any(
        "_mv" in vars(base) for base in type(filesystem).__mro__
    )


def _protocols(filesystem: fsspec.AbstractFileSystem) -> set[str]:
    protocol: Any = filesystem.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)
