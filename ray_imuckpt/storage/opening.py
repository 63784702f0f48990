"""From a URL or a file system to a directory on it. Touches fsspec and pyarrow.

The engine is obstore's, where it is installed and knows the scheme and all options; else fsspec's
file system, which takes the same URL and the same options.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ray_imuckpt.errors import StorageError
from ray_imuckpt.options import Retries
from ray_imuckpt.storage import secrets
from ray_imuckpt.storage.engines import filesystems, s3_options, translation
from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.connection import UnknownOptionError
from ray_imuckpt.storage.engines.filesystems import unwrapped
from ray_imuckpt.storage.engines.fsspec_engine import FsspecEngine
from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.engines.shared import of_parent, shared
from ray_imuckpt.storage.local import LocalStorage
from ray_imuckpt.storage.names import shown
from ray_imuckpt.storage.remote import RemoteStorage

if TYPE_CHECKING:
    import pyarrow.fs

    from ray_imuckpt.storage.engines.obstore_engine import ObstoreEngine

_S3_URLS = ("s3://", "s3a://")

logger = logging.getLogger("ray_imuckpt")


def open_url(
    name: str, options: Mapping[str, Any], retries: Retries | None = None
) -> LocalStorage | RemoteStorage:
    """Return the directory at a URL.

    Args:
        name: As `names.absolute` returns it.
        options: As the fsspec file system of the URL takes them.
        retries: How often and how long an operation is tried.

    Raises:
        StorageError: Its package is missing, an option is wrong, or it cannot be connected to.
    """
    url = shown(name.rpartition("::")[2])
    secrets.check_endpoint(options, url)
    budget, patience = Budget(), Patience.of(retries)
    scheme, _, path = url.partition("://")
    engine = _obstore(scheme, path, options)
    if engine is not None:
        return RemoteStorage(engine, path, budget=engine.budget, patience=patience)
    filesystem, path = _filesystem(name, url, options)
    # A host, say; fsspec's own way to ask.
    says_more = type(filesystem)._get_kwargs_from_urls(url)  # noqa: SLF001
    return _at(filesystem, path, url if says_more else None, budget, patience)


def _filesystem(
    name: str, url: str, options: Mapping[str, Any]
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL, and the path on it; errors as for `open_url`."""
    if url.startswith(_S3_URLS):
        options = s3_options.for_botocore(options)
    try:
        opened: tuple[fsspec.AbstractFileSystem, str] = url_to_fs(name, **options)
    except ImportError as error:
        raise _missing(error, url) from error
    except TypeError as error:  # the file system's own signature says so
        raise StorageError(
            f"An option in storage_options is wrong: {error}.",
            url=url,
            hint=f"They are those of fsspec's file system for {url.partition('://')[0]}://.",
        ) from error
    except Exception as error:  # noqa: BLE001 - of the store's own library: it could not connect
        raise StorageError(
            "The file system cannot be opened: "
            f"{type(error).__name__}: {secrets.without(str(error), options)}.",
            url=url,
            hint="Look at the credentials, the endpoint and storage_options.",
        ) from (None if secrets.told_by(error, options) else error)
    if url.startswith(_S3_URLS):
        opened[0].retries = 1  # this instance is ours alone, by its options
    return opened


def _missing(error: ImportError, url: str) -> StorageError:
    package = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
    # A module may have another name than what is installed for it (smbclient is of smbprotocol):
    # it is advised only where fsspec names it as a package.
    cure = f"pip install {package}" if package and package in str(error) else "see above"
    if of_parent():
        cure += ", or begin this process by spawn, not by fork: obstore serves no forked one"
    elif translation.knows(url.partition("://")[0]):
        cure = f"pip install 'ray-imuckpt[obstore]', which is the fastest, or {cure}"
    return StorageError(
        f"The package {package or 'for this file system'} is missing: {error}.",
        url=url,
        hint=f"Install what is missing: {cure}.",
    )


def _obstore(scheme: str, path: str, options: Mapping[str, Any]) -> ObstoreEngine | None:
    """Return the engine of obstore, ``None`` where it cannot do the same as fsspec."""
    if not translation.knows(scheme):
        return None
    if not _obstore_aborts():
        logger.debug("%s://%s by way of fsspec: obstore 0.12 is not installed", scheme, path)
        return None
    from ray_imuckpt.storage.engines.obstore_engine import ObstoreEngine

    if of_parent():
        logger.debug("%s://%s by way of fsspec: obstore serves no forked process", scheme, path)
        return None
    try:
        connection = translation.connection(scheme, path, options)
    except UnknownOptionError as error:
        logger.debug("%s://%s by way of fsspec, not obstore: %s", scheme, path, error)
        return None
    url = f"{scheme}://{path}"
    budget = Budget()

    def by_fsspec() -> FsspecEngine:
        filesystem, _ = _filesystem(url, url, options)
        return FsspecEngine(filesystem, budget)

    def make() -> ObstoreEngine:
        return ObstoreEngine(connection, budget, by_fsspec)

    return shared(scheme, options, make)


def _obstore_aborts() -> bool:
    """Return whether there is an obstore that gives up an upload of which a part was refused."""
    try:
        version = importlib.metadata.version("obstore")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (0, 12)


def _at(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    url: str | None = None,
    budget: Budget | None = None,
    patience: Patience | None = None,
) -> LocalStorage | RemoteStorage:
    """Return a directory of a file system, which may be the local disk in disguise."""
    filesystem, path = unwrapped(filesystem, path)
    if isinstance(filesystem, LocalFileSystem):  # only through `os` is `put` atomic there
        return LocalStorage(os.path.abspath(path))
    budget, patience = budget or Budget(), patience or Patience()
    made_with = filesystems.made_with(filesystem)
    if made_with is not None:  # by Ray, say, on a worker: the same engine as for the URL
        scheme, options = made_with
        faster = _obstore(scheme, path, options)
        if faster is not None:
            return RemoteStorage(faster, path, url, budget=faster.budget, patience=patience)
        if scheme == "s3":  # the same, without its own repetitions
            filesystem, path = _filesystem(f"s3://{path}", f"s3://{path}", options)
    engine = FsspecEngine(filesystem, budget)
    return RemoteStorage(engine, path, url, budget=budget, patience=patience)


def at_arrow(filesystem: pyarrow.fs.FileSystem, path: str) -> LocalStorage | RemoteStorage:
    """Return a directory of a pyarrow file system; an fsspec one inside it is taken out again."""
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
    return _at(ArrowFSWrapper(filesystem), path)
