"""Listings of a directory behind an engine. Touches nothing by itself."""

from __future__ import annotations

import posixpath

from ray_imuckpt.errors import StorageError
from ray_imuckpt.storage import Entry
from ray_imuckpt.storage.engines.protocol import Engine, Kind
from ray_imuckpt.storage.refusals import store_error


def holding(engine: Engine, root: str, url: str, marker: str) -> list[str]:
    """Return what `Storage.holding` says."""
    try:
        paths = engine.names_below(root)
    except FileNotFoundError as error:
        _check_absent(engine, root, url, error)
        if engine.kind is Kind.OBJECTS:
            return []
        raise
    except OSError as error:
        raise unusable(engine, url, "could not be listed", error) from error
    names = []
    for path in paths:
        if path.strip("/") == root.strip("/"):
            raise StorageError("This is a file, not a directory.", url=url, hint="Look at `dir`.")
        directory, _, name = _inside(path, root).rpartition("/")
        if name == marker and "/" not in directory:
            names.append(directory)
    return names


def _check_absent(engine: Engine, root: str, url: str, error: FileNotFoundError) -> None:
    """Raise unless the listing that holds this directory says that it is not there.

    On a disk that is the directory above. In an object store a directory is there by what is in
    it: the first one above that is there decides, at last the bucket.
    """
    path = root
    while parent := posixpath.dirname(path):
        try:
            names = [entry.path.strip("/") for entry in engine.entries(parent)]
        except FileNotFoundError:
            if engine.kind is not Kind.OBJECTS:
                break
            if parent == "/":
                return
            path = parent
            continue
        except PermissionError:
            return  # what may not be looked at says nothing against the answer
        except OSError as failed:
            raise unusable(engine, url, "could not be listed", failed) from failed
        if path.strip("/") in names:
            raise StorageError(
                "The directory is there, but its listing says that it is not.",
                url=url,
                hint="The storage contradicts itself; try again.",
            ) from error
        return
    raise unusable(engine, url, "could not be listed", error) from error


def unusable(engine: Engine, url: str, what: str, error: OSError) -> StorageError:
    """Return what to raise when a directory cannot be used."""
    return store_error(what, url, error, objects=engine.kind is Kind.OBJECTS)


def written(engine: Engine, path: str) -> float:
    """Return when a file was written, by the store's own clock.

    Raises:
        OSError: The store does not tell.
    """
    found = engine.modified(path)
    if found is None:
        raise OSError(f"There is no telling when {path} was written")
    return found


def entries(engine: Engine, root: str, levels: int = 2) -> list[Entry]:
    """Return what `Storage.entries` says."""
    try:
        found = engine.below(root, levels)
    except FileNotFoundError:
        return []
    named = [Entry(_inside(one.path, root), one.size, one.modified) for one in found]
    listed = [entry for entry in named if entry.name.count("/") < levels]
    return listed if levels <= 2 else [e for e in listed if not _is_hidden(e.name)]


def _is_hidden(name: str) -> bool:
    """Return whether a file lies in a directory whose name begins with a dot."""
    return any(part.startswith(".") for part in name.split("/")[:-1])


def exists(engine: Engine, path: str) -> bool:
    """Return whether there is such a file."""
    try:
        engine.size(path)
    except FileNotFoundError:
        return False
    return True


def _inside(path: str, root: str) -> str:
    return path.strip("/").removeprefix(root.strip("/")).strip("/")
