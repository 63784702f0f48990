"""Listings of a directory by fsspec's file systems. Touches fsspec and pyarrow.

A listing that fails is never an empty one: fsspec's own walk passes over errors, so that it is used
only where it is one listing of the store's own.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

from ray_imuckpt.storage.engines import filesystems
from ray_imuckpt.storage.engines.protocol import Listed
from ray_imuckpt.storage.entries import unread


def entries(filesystem: fsspec.AbstractFileSystem, path: str) -> list[Listed]:
    """Return what is in a directory; errors as for `Engine.entries`."""
    filesystem.invalidate_cache()
    inside = path.strip("/")
    listed = filesystem.ls(path, detail=True)
    return [_listed(entry) for entry in listed if entry["name"].strip("/") != inside]


def names_below(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Return the paths of the files below a directory; errors as for `Engine.below`."""
    if isinstance(filesystem, ArrowFSWrapper):
        return [listed.path for listed in _arrow_below(filesystem, path)]
    if filesystems.lists_itself(filesystem):
        filesystem.invalidate_cache()
        return list(filesystem.find(path))
    paths = []
    for entry in entries(filesystem, path):
        if entry.is_file:
            paths.append(entry.path)
            continue
        # It may be gone by now; and a link need not lead to a directory.
        passed = FileNotFoundError if entry.is_directory else OSError
        with contextlib.suppress(passed):
            below = entries(filesystem, entry.path)
            paths += [listed.path for listed in below if not listed.is_directory]
    return paths


def below(filesystem: fsspec.AbstractFileSystem, path: str, levels: int = 2) -> list[Listed]:
    """Return the files below a directory; errors as for `Engine.below`."""
    if isinstance(filesystem, ArrowFSWrapper):
        return _arrow_below(filesystem, path)
    if filesystems.lists_itself(filesystem):
        filesystem.invalidate_cache()
        listed = [_listed(entry) for entry in filesystem.find(path, detail=True).values()]
    else:
        listed = _walked(filesystem, path, levels)
    return [entry for entry in listed if entry.is_file]


def _walked(filesystem: fsspec.AbstractFileSystem, path: str, levels: int) -> list[Listed]:
    """Return what is in a directory and so many levels of those in it, one call for each."""
    listed = inside = entries(filesystem, path)
    for _ in range(levels - 1):
        directories = [entry.path for entry in inside if entry.is_directory]
        inside = []
        for directory in directories:
            if levels > 2 and posixpath.basename(directory.rstrip("/")).startswith("."):
                continue
            try:
                inside += entries(filesystem, directory)
            except FileNotFoundError:  # by now
                continue
            except OSError as error:
                if levels <= 2:
                    raise
                unread(directory, error)
        listed = listed + inside
    return listed


def _arrow_below(filesystem: ArrowFSWrapper, path: str) -> list[Listed]:
    import pyarrow.fs

    infos = filesystem.fs.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
    return [Listed(i.path, i.size, i.mtime and i.mtime.timestamp()) for i in files]


def _listed(entry: Mapping[str, Any]) -> Listed:
    return Listed(
        entry["name"],
        int(entry["size"] or 0),
        filesystems.modified(entry),
        is_file=entry["type"] == "file",
        is_directory=entry["type"] == "directory",
        is_link=entry["type"] == "link" or bool(entry.get("islink")),
    )
