"""From a URL or a file system to a directory on it. Touches fsspec and pyarrow."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ray_imuckpt.errors import StorageError
from ray_imuckpt.storage.filesystems import unwrapped
from ray_imuckpt.storage.local import LocalStorage
from ray_imuckpt.storage.names import shown
from ray_imuckpt.storage.remote import RemoteStorage

if TYPE_CHECKING:
    import pyarrow.fs


def open_url(name: str, options: dict[str, Any]) -> LocalStorage | RemoteStorage:
    """The directory at a URL.

    Args:
        name: As `names.absolute` returns it.
        options: Passed to the file system.

    Raises:
        StorageError: Its package is missing, or it cannot be connected to.
    """
    url = shown(name.rpartition("::")[2])
    try:
        filesystem, path = url_to_fs(name, **options)
    except ImportError as error:
        package = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
        raise StorageError(
            f"The package {package or 'for this file system'} is missing: {error}.",
            url=url,
            hint=f"Install it: pip install {package or '…'}.",
        ) from error
    except Exception as error:  # of the store's own library, most often: it could not connect
        raise StorageError(
            f"The file system cannot be opened: {type(error).__name__}: {error}.",
            url=url,
            hint="Look at the credentials, the endpoint and storage_options.",
        ) from error
    # A host, say; fsspec's own way to ask.
    says_more = type(filesystem)._get_kwargs_from_urls(url)  # noqa: SLF001
    return _at(filesystem, path, url if says_more else None)


def _at(
    filesystem: fsspec.AbstractFileSystem, path: str, url: str | None = None
) -> LocalStorage | RemoteStorage:
    """A directory of a file system, which may be the local disk in disguise."""
    filesystem, path = unwrapped(filesystem, path)
    if isinstance(filesystem, LocalFileSystem):  # only through `os` is `put` atomic there
        return LocalStorage(os.path.abspath(path))
    return RemoteStorage(filesystem, path, url)


def at_arrow(filesystem: pyarrow.fs.FileSystem, path: str) -> LocalStorage | RemoteStorage:
    """A directory of a pyarrow file system; an fsspec one inside it is taken out again."""
    import pyarrow.fs
    from fsspec.implementations.arrow import ArrowFSWrapper

    if isinstance(filesystem, pyarrow.fs.SubTreeFileSystem):
        return at_arrow(filesystem.base_fs, posixpath.join(filesystem.base_path, path))
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return LocalStorage(path)
    if isinstance(filesystem, pyarrow.fs.PyFileSystem):
        handler = filesystem.handler
        if isinstance(handler, pyarrow.fs.FSSpecHandler):
            return _at(handler.fs, path)
    return RemoteStorage(ArrowFSWrapper(filesystem), path)
