"""What changes, vanishes or is misread while it is read is looked at again before it is blamed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conditional_store import Contents
from conftest import adamw, small_model, train
from ray_imuckpt import Checkpointer, CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.cli import main
from ray_imuckpt.storage.local import LocalStorage


def misread(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[list[memoryview]], None], times: int
) -> None:
    """Spoil the first reads of the model's file."""
    real = LocalStorage.read_into
    left = [times]

    def read(self: Any, name: str, offset: int, views: Any, seen: Callable[..., Any]) -> None:
        if "model-" in name and left[0]:
            left[0] -= 1
            real(self, name, offset, views, lambda _: None)
            spoil(views)
            for view in views:
                seen(view)
        else:
            real(self, name, offset, views, seen)

    monkeypatch.setattr(LocalStorage, "read_into", read)


def flip(views: list[memoryview]) -> None:
    views[0][0] ^= 1


def fail(_: list[memoryview]) -> None:
    raise OSError(5, "Input/output error")


def cut(_: list[memoryview]) -> None:
    raise EOFError("ends too early")


@pytest.mark.parametrize("spoil", [flip, fail, cut])
def test_one_bad_read_is_not_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is read again, and told; what is restored is what was saved."""
    model, *_ = train(tmp_path, 2)
    misread(monkeypatch, spoil, 1)
    with caplog.at_level(logging.WARNING):
        loaded = Checkpointer(tmp_path).load(small_model(5))
    assert "read again, and is sound" in caplog.text
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_two_bad_reads_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage does not hold what was written."""
    train(tmp_path, 2)
    misread(monkeypatch, flip, 1000)
    with pytest.raises(CorruptCheckpointError, match="were altered"):
        Checkpointer(tmp_path).load(small_model(5))


def test_one_bad_read_of_a_manifest_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it passed over for an older one."""
    train(tmp_path, 2)
    real, bad = LocalStorage.get, ["checkpoint=2/manifest.json"]

    def get(self: LocalStorage, name: str) -> bytes:
        data = real(self, name)
        if name not in bad:
            return data
        bad.remove(name)
        return data[:50]

    monkeypatch.setattr(LocalStorage, "get", get)
    assert Checkpointer(tmp_path).read(2).epoch == 2


def test_a_newest_checkpoint_that_vanishes_is_as_if_it_had_never_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted between the listing and the read."""
    train(tmp_path, 3)
    real = LocalStorage.get

    def get(self: LocalStorage, name: str) -> bytes:
        if name == "checkpoint=3/manifest.json":
            shutil.rmtree(tmp_path / "checkpoint=3", ignore_errors=True)
        return real(self, name)

    monkeypatch.setattr(LocalStorage, "get", get)
    model = small_model()
    assert Checkpointer(tmp_path).start(model, adamw(model)).start_epoch == 3


def test_a_listing_that_lags_behind_names_no_last_checkpoint_that_is_gone() -> None:
    """Stores may list for a while what was deleted."""
    contents = Contents()
    options: dict[str, Any] = {"storage_options": {"contents": contents}}
    checkpointer = Checkpointer("conditional://bucket/run", blocking=True, **options)
    model = nn.Linear(2, 2)
    checkpointer.start(model)
    for epoch in (1, 2, 3):
        checkpointer.checkpoint(epoch, model=model)

    def gone(kind: str, key: str) -> None:
        if kind in ("get", "head") and "checkpoint=3/" in key:
            raise FileNotFoundError(key)

    contents.before = gone
    reader = Checkpointer("conditional://bucket/run", **options)
    assert reader.index_of_last_checkpoint() == 2
    assert reader.start(nn.Linear(2, 2)).start_epoch == 3
    assert reader.read().epoch == 2
    assert reader.prune(keep_last=1, dry_run=True) == [1]
    with pytest.raises(CheckpointNotFoundError):
        reader.read(3)


def test_prune_leaves_an_epoch_that_was_saved_anew_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another save than the one that was judged is not deleted, nor any of its files."""
    train(tmp_path, 4)
    run = Checkpointer(tmp_path, blocking=True)
    model = small_model()
    run.start(model, adamw(model))
    run.checkpoint(5, model=model)
    real = LocalStorage.delete_if

    def delete_if(self: LocalStorage, name: str, seen: bytes) -> bool:
        if name == "checkpoint=2/manifest.json":
            run.checkpoint(2, model=model)
        return real(self, name, seen)

    monkeypatch.setattr(LocalStorage, "delete_if", delete_if)
    assert Checkpointer(tmp_path).prune(keep_last=1) == [1, 3]
    Checkpointer(tmp_path).verify(2)


def test_prune_stops_when_the_checkpoint_that_is_to_stay_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was the reason why the others may go."""
    train(tmp_path, 4)
    real = LocalStorage.delete_if

    def delete_if(self: LocalStorage, name: str, seen: bytes) -> bool:
        shutil.rmtree(tmp_path / "checkpoint=4", ignore_errors=True)
        return real(self, name, seen)

    monkeypatch.setattr(LocalStorage, "delete_if", delete_if)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert "Prune again" in caplog.text
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [2, 3]
