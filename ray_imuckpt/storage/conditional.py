"""Putting a file only if no other process has: what object stores offer, and what is done without.

A store can do the work of a put and lose its answer; its client then puts again by itself, perhaps
after another process has replaced the file. A put with a condition is harmless then. The condition
is the store's: `Absent` for a new file, and `Tagged` for one that is replaced.
Without one the file is read before and after, and what is replaced may still come back.

What each store offers, and what it costs: docs/adr/0023-commits-under-a-condition.md.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable

from ray_imuckpt.storage import ConflictError, DoubtfulError
from ray_imuckpt.storage.engines.protocol import Absent, Condition, Engine, Kind, Tagged
from ray_imuckpt.storage.names import MAX_RECORD, temporary_name

_NO_ETAG = '"00000000000000000000000000000000"'


class Heeds:
    """The knowledge of which conditions a store heeds.

    Attributes:
        tags: Whether it refuses a put under a wrong tag; ``None``: not asked yet.
    """

    def __init__(self) -> None:
        self.tags: bool | None = None


def put_if(
    engine: Engine,
    heeds: Heeds,
    path: str,
    data: bytes,
    seen: bytes | None,
    put: Callable[[str, bytes, Condition | None], None],
) -> bool:
    """Do what `Storage.put_if` says; `put` is called with path, data and condition."""
    condition = _condition(engine, heeds, path, seen)
    try:
        put(path, data, condition)
    except PermissionError:  # the store has answered, and the answer is no
        raise
    except OSError as error:
        return _found_out(engine, path, data, seen, error, guarded=condition is not None)
    if condition is None and standing(engine, path) != data:
        raise DoubtfulError(f"{path} was put, and another process has replaced it since")
    return condition is not None


def standing(engine: Engine, path: str) -> bytes | None:
    """Return what a file holds, ``None`` where there is none."""
    try:
        return engine.get(path, MAX_RECORD + 1)
    except FileNotFoundError:
        return None


def _condition(engine: Engine, heeds: Heeds, path: str, seen: bytes | None) -> Condition | None:
    """Return what to ask of the store with the put, ``None`` where it offers nothing."""
    if seen is None and engine.makes_new:
        return Absent()
    tag = _tag(engine, heeds, path) if seen is not None else None
    if standing(engine, path) != seen:  # after the tag, which is then this content's or older
        raise ConflictError(f"{path} was put by another process")
    return None if tag is None else Tagged(tag)


def _tag(engine: Engine, heeds: Heeds, path: str) -> str | None:
    """Return the tag of a file's content, where a put can be made to depend on it."""
    if engine.kind is not Kind.OBJECTS:
        return None
    with contextlib.suppress(FileNotFoundError):
        tag = engine.tag(path)
        return tag if tag is not None and _heeds_tags(engine, heeds, path) else None
    return None


def _heeds_tags(engine: Engine, heeds: Heeds, path: str) -> bool:
    """Return whether the store refuses a put under a wrong tag: some servers pass conditions over.

    Asked once in a process, by a file that is removed again, and only where a file is replaced.
    """
    if heeds.tags is None:
        probe = posixpath.join(posixpath.dirname(path), temporary_name("probe"))
        try:
            engine.put(probe, b"1")
            try:
                engine.put(probe, b"2", Tagged(_NO_ETAG))
            except OSError:
                heeds.tags = standing(engine, probe) == b"1"
            else:
                heeds.tags = False
        finally:
            with contextlib.suppress(OSError):
                engine.remove(probe)
    return heeds.tags


def _found_out(
    engine: Engine, path: str, data: bytes, seen: bytes | None, error: OSError, *, guarded: bool
) -> bool:
    """Read back what a put that raised has left; as `put_if` returns."""
    try:
        content = standing(engine, path)
    except OSError as unreadable:
        raise DoubtfulError(
            f"{path} was sent, and whether it arrived cannot be told: "
            f"{type(error).__name__}: {error}"
        ) from unreadable
    if content == data:
        return guarded
    if guarded and content != seen:  # so the condition fails, now and for every put still under way
        raise ConflictError(f"{path} was put by another process") from error
    raise DoubtfulError(
        f"{path} was sent and is not there, but may still arrive: {type(error).__name__}: {error}"
    ) from error
