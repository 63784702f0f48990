"""Putting a file only if no other process has: what object stores offer, and what is done without.

A store can do the work of a put and lose its answer; its client then puts again by itself, perhaps
after another process has replaced the file. A put with a condition is harmless then. The condition
is the store's: `create_keywords` for a new file, and S3's ``If-Match`` for one that is replaced.
Without one the file is read before and after, and what is replaced may still come back.

What each store offers, and what it costs: docs/adr/0023-commits-under-a-condition.md.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable
from typing import Any

from ray_imuckpt.storage import ConflictError, DoubtfulError, filesystems
from ray_imuckpt.storage.client import Client
from ray_imuckpt.storage.filesystems import Kind
from ray_imuckpt.storage.names import temporary_name

_NO_ETAG = '"00000000000000000000000000000000"'


def put_if(
    client: Client, path: str, data: bytes, seen: bytes | None, put: Callable[..., None]
) -> bool:
    """See `Storage.put_if`; `put` is called with path, data and what the store understands."""
    condition = _condition(client, path, seen)
    try:
        put(path, data, **(condition or {}))
    except PermissionError:  # the store has answered, and the answer is no
        raise
    except OSError as error:
        return _found_out(client, path, data, seen, error, guarded=condition is not None)
    if condition is None and standing(client, path) != data:
        raise DoubtfulError(f"{path} was put, and another process has replaced it since")
    return condition is not None


def standing(client: Client, path: str) -> bytes | None:
    """Return what a file holds, ``None`` where there is none."""
    try:
        return client.get(path)
    except FileNotFoundError:
        return None


def _condition(client: Client, path: str, seen: bytes | None) -> dict[str, Any] | None:
    """Return what to ask of the store with the put, ``None`` where it offers nothing."""
    if seen is None and client.kind is Kind.OBJECTS:
        created = filesystems.create_keywords(client.filesystem)
        if created is not None:
            return created
    tag = _tag(client, path) if seen is not None else None
    if standing(client, path) != seen:  # after the tag, which is then this content's or older
        raise ConflictError(f"{path} was put by another process")
    return None if tag is None else {"IfMatch": tag}


def _tag(client: Client, path: str) -> str | None:
    """Return S3's tag of a file's content, where a put can be made to depend on it."""
    if not filesystems.speaks_s3(client.filesystem) or not _heeds_tags(client, path):
        return None
    with contextlib.suppress(FileNotFoundError):
        return client.tag(path)
    return None


def _heeds_tags(client: Client, path: str) -> bool:
    """Whether the store refuses a put under a wrong tag: some servers pass conditions over.

    Asked once in a process, by a file that is removed again, and only where a file is replaced.
    """
    if client.heeds_tags is None:
        probe = posixpath.join(posixpath.dirname(path), temporary_name("probe"))
        try:
            client.upload(probe, b"1")
            try:
                client.upload(probe, b"2", IfMatch=_NO_ETAG)
            except OSError:
                client.heeds_tags = standing(client, probe) == b"1"
            else:
                client.heeds_tags = False
        finally:
            with contextlib.suppress(OSError):
                client.remove(probe)
    return client.heeds_tags


def _found_out(
    client: Client, path: str, data: bytes, seen: bytes | None, error: OSError, *, guarded: bool
) -> bool:
    """Read back what a put that raised has left; as `put_if`."""
    try:
        found = standing(client, path)
    except OSError as unreadable:
        raise DoubtfulError(
            f"{path} was sent, and whether it arrived cannot be told: "
            f"{type(error).__name__}: {error}"
        ) from unreadable
    if found == data:
        return guarded
    if guarded and found != seen:  # so the condition fails, now and for every put still under way
        raise ConflictError(f"{path} was put by another process") from error
    raise DoubtfulError(
        f"{path} was sent and is not there, but may still arrive: {type(error).__name__}: {error}"
    ) from error
