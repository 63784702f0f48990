"""A file is put only while it is what was seen; an answer that is lost or late harms nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from conditional_store import Contents
from ray_imuckpt.options import Retries
from ray_imuckpt.storage import ConflictError, DoubtfulError, Storage, open_storage

ONCE = Retries(attempts=1)


@pytest.fixture
def contents() -> Contents:
    return Contents()


@pytest.fixture
def store(contents: Contents) -> Storage:
    return open_storage("conditional://bucket/run", {"contents": contents}, ONCE)


def names(storage: Storage) -> list[str]:
    return sorted(entry.name for entry in storage.entries())


def lose_once(contents: Contents, kind: str, then: Callable[[], None] = lambda: None) -> None:
    """Let the first request of a kind do its work, and lose its answer after `then`."""

    def lost(this: str, _key: str) -> None:
        if this == kind:
            contents.after = lambda _kind, _key: None
            then()
            raise TimeoutError("no answer")

    contents.after = lost


@pytest.mark.parametrize("seen", [None, b"0"])
def test_a_put_whose_answer_was_lost_is_read_back(
    contents: Contents, store: Storage, seen: bytes | None
) -> None:
    """It had arrived, so that it counts as done."""
    if seen is not None:
        store.put("m", seen)
        assert store.put_if("m", b"00", seen), "so that the store was asked what it heeds"
        seen = b"00"
    lose_once(contents, "put")
    assert store.put_if("m", b"1", seen)
    assert store.get("m") == b"1"


@pytest.mark.parametrize("seen", [None, b"00"])
def test_a_put_that_is_sent_again_does_not_replace_a_newer_one(
    contents: Contents, store: Storage, seen: bytes | None
) -> None:
    """A client of a store that gets no answer puts again, by itself, after another writer."""
    if seen is not None:
        store.put("m", b"0")
        store.put_if("m", seen, b"0")
    there: Any = store
    filesystem: Any = there._engine.engine.filesystem
    real = filesystem.pipe_file

    def answered_late(path: str, value: bytes, **condition: Any) -> None:
        real(path, value, **condition)
        contents.objects["bucket/run/m"] = (b"newer", '"newer"', 0.0)
        real(path, value, **condition)

    filesystem.pipe_file = answered_late
    with pytest.raises(ConflictError):
        store.put_if("m", b"1", seen)
    assert store.get("m") == b"newer"


def test_a_store_that_passes_conditions_over_is_found_out(
    contents: Contents, store: Storage
) -> None:
    """Then nobody takes what was replaced for gone."""
    contents.heeds = False
    store.put("m", b"0")
    assert store.put_if("m", b"1", b"0") is False
    assert names(store) == ["m"]


def test_a_put_that_cannot_be_read_back_is_doubtful(contents: Contents, store: Storage) -> None:
    """Neither done nor failed: a DoubtfulError."""

    def refuse(kind: str, _key: str) -> None:
        if kind == "get":
            raise OSError("unreachable")

    def gone() -> None:
        contents.before = refuse

    lose_once(contents, "put", gone)
    with pytest.raises(DoubtfulError, match="cannot be told"):
        store.put_if("m", b"1", None)


def test_a_put_that_is_not_there_yet_is_doubtful(contents: Contents, store: Storage) -> None:
    """It may be on its way: what it needs must stay."""

    def refuse(kind: str, _key: str) -> None:
        if kind == "put":
            raise TimeoutError("no answer")

    contents.before = refuse
    with pytest.raises(DoubtfulError, match="may still arrive"):
        store.put_if("m", b"1", None)


def test_a_put_that_is_refused_is_no_doubt(contents: Contents, store: Storage) -> None:
    """The store's own error is raised as it is."""

    def refuse(kind: str, _key: str) -> None:
        if kind == "put":
            raise PermissionError("Access Denied")

    contents.before = refuse
    with pytest.raises(PermissionError, match="Access Denied"):
        store.put_if("m", b"1", None)


def test_a_new_file_costs_one_request(contents: Contents, store: Storage) -> None:
    """Nothing is looked up where the store itself refuses to replace."""
    store.put_if("m", b"1", None)
    assert contents.calls == [("put", "bucket/run/m")]


def test_unfinished_uploads_are_listed_and_given_up(contents: Contents, store: Storage) -> None:
    """Those of this directory alone, with the times at which they began."""
    contents.uploads.update(
        {
            "1": ("bucket/run/checkpoint=1/a", 5.0),
            "2": ("bucket/run/b", 6.0),
            "3": ("bucket/x", 7.0),
        }
    )
    found = store.uploads()
    assert [(u.name, u.begun) for u in found] == [("checkpoint=1/a", 5.0), ("b", 6.0)]
    for upload in found:
        store.abort(upload)
    assert list(contents.uploads) == ["3"], "that of another place stays"
