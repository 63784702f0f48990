"""Object stores: buckets that are missing or denied, and listings that cannot be believed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest
from torch import nn

import filesystems
from conftest import small_model
from filesystems import checkpointer_on
from ray_imuckpt import Checkpointer, SaveFailedError, StorageError
from ray_imuckpt.storage.engines.fsspec_engine import FsspecEngine
from ray_imuckpt.storage.remote import RemoteStorage


def bucket(path: str = "bucket/runs/a") -> tuple[filesystems.Buckets, RemoteStorage]:
    filesystem = filesystems.Buckets()
    return filesystem, RemoteStorage(FsspecEngine(filesystem), path)


def test_a_bucket_that_is_missing_is_an_error_at_start_and_not_made() -> None:
    """At the first request, whatever is continued from; reading helpers say the same."""
    for choice in ("last", "none", 3):
        filesystem, storage = bucket("typo/runs/a")
        with pytest.raises(StorageError, match="bucket does not exist") as caught:
            checkpointer_on(storage).start(nn.Linear(2, 2), continue_from=choice)
        assert "typo/runs/a" in str(caught.value)
        assert filesystem.calls[0] == "put"
        assert list(filesystem.buckets) == ["bucket"]
        uses: list[Callable[[Checkpointer], object]] = [
            lambda c: c.list_existing_checkpoint_indices(),
            lambda c: c.index_of_last_checkpoint(),
            lambda c: c.load(nn.Linear(2, 2)),
        ]
        for use in uses:
            with pytest.raises(StorageError, match="bucket does not exist"):
                use(checkpointer_on(storage))
    with pytest.raises(SaveFailedError):
        checkpointer_on(storage).checkpoint(1, model=small_model())
    assert list(filesystem.buckets) == ["bucket"]


def test_trying_an_object_store_costs_two_requests() -> None:
    """One put, one delete; then a run goes on as ever, and no bucket is asked for."""
    filesystem, storage = bucket()
    storage.check_writable()()
    assert filesystem.calls == ["put", "delete"]
    checkpointer = checkpointer_on(storage)
    assert checkpointer.start(small_model()).start_epoch == 1
    checkpointer.checkpoint(1, model=small_model())
    assert checkpointer.start(small_model()).start_epoch == 2
    assert "makedirs" not in filesystem.calls


class ForeignError(Exception):
    """What a store's own library raises, which is no OSError."""


@pytest.mark.parametrize(
    "error",
    [PermissionError("AccessDenied"), OSError("503 SlowDown"), ForeignError("no credentials")],
)
@pytest.mark.parametrize("call", ["put", "list"])
def test_what_a_store_refuses_is_told_at_start(error: Exception, call: str) -> None:
    """A listing that fails is never an empty one; place, cause and cure are told."""
    filesystem, storage = bucket()
    checkpointer_on(storage).checkpoint(1, model=small_model())
    filesystem.fails[call] = error
    with pytest.raises(StorageError) as caught:
        checkpointer_on(storage).start(small_model())
    assert str(error) in str(caught.value)
    assert "buckets://bucket/runs/a" in str(caught.value)
    if isinstance(error, PermissionError):
        assert "right to list, read, write" in str(caught.value)


@pytest.mark.parametrize("path", ["bucket/a", "bucket/deep/runs/a", "bucket"])
def test_a_listing_that_contradicts_the_bucket_is_no_empty_one(path: str) -> None:
    """`start` does not begin anew because one answer was 404."""
    filesystem, storage = bucket(path)
    checkpointer_on(storage).checkpoint(1, model=small_model())
    filesystem.fails["list"] = FileNotFoundError("404")
    with pytest.raises(StorageError):
        checkpointer_on(storage).start(small_model())


@pytest.mark.parametrize("path", ["bucket/a", "bucket/deep/runs/a"])
def test_a_prefix_without_objects_is_an_empty_directory(path: str) -> None:
    """Also where the file system calls it missing, as long as the bucket answers."""
    filesystem, storage = bucket(path)
    filesystem.fails["list"] = FileNotFoundError("no such prefix")
    assert checkpointer_on(storage).list_existing_checkpoint_indices() == []


def test_a_probe_that_cannot_be_deleted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A store that lets write but not delete holds checkpoints; that none can be pruned is said."""
    filesystem, storage = bucket()
    filesystem.fails["delete"] = PermissionError("AccessDenied")
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        assert checkpointer_on(storage).start(small_model()).start_epoch == 1
    assert "cannot be removed" in caplog.text
    (left,) = filesystem.buckets["bucket"]
    assert os.path.basename(left).startswith(".probe.")
    checkpointer_on(storage).checkpoint(1, model=small_model())
    assert checkpointer_on(storage).list_existing_checkpoint_indices() == [1]


def test_prefixes_that_may_not_be_looked_at_from_above() -> None:
    """Credentials for one prefix only: that it holds nothing yet is believed."""
    filesystem, storage = bucket()
    filesystem.fails["list"] = FileNotFoundError("no such prefix")
    filesystem.fails["ls"] = PermissionError("AccessDenied")
    assert checkpointer_on(storage).start(small_model()).start_epoch == 1
