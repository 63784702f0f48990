"""What the disk has not confirmed is not called durable."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import small_model, train
from ray_imuckpt import Checkpointer, SaveFailedError, StorageError
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import NotDurableError, open_storage


class Disk:
    """Counts and fails ``fsync``; knows the names of what was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        self.renamed: list[str] = []
        self.fails: Callable[[str, bool], bool] = lambda path, is_directory: False
        real_sync, real_replace = os.fsync, os.replace

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.fails(path, stat.S_ISDIR(os.fstat(descriptor).st_mode)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real_sync(descriptor)
            self.synced.append(path)

        def replace(source: Any, target: Any) -> None:
            real_replace(source, target)
            self.renamed.append(str(target))

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def files(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def test_a_commit_that_the_disk_does_not_confirm_has_an_unknown_outcome(
    tmp_path: Path, disk: Disk
) -> None:
    """The rename may not survive: it is no success, and what the old manifest names stays."""
    train(tmp_path, 1)
    directory = tmp_path / "checkpoint=1"
    old, manifest = files(directory), (directory / "manifest.json").read_bytes()
    disk.renamed.clear()
    disk.fails = lambda path, is_directory: is_directory and bool(disk.renamed)
    with pytest.raises(SaveFailedError, match="may be there or not"):
        Checkpointer(tmp_path, blocking=True).checkpoint(1, model=nn.Linear(2, 2))
    disk.fails = lambda path, is_directory: False
    assert old <= files(directory), "the power may fail now"
    Checkpointer(tmp_path).verify(1)
    (directory / "manifest.json").write_bytes(manifest)  # the rename did not reach the disk
    Checkpointer(tmp_path).verify(1)


@pytest.mark.parametrize("number", range(8))
def test_a_failed_sync_anywhere_fails_the_save(tmp_path: Path, disk: Disk, number: int) -> None:
    """Whichever call it is, also when all later ones succeed: the kernel tells an error once."""
    train(tmp_path / "run", 1)
    countdown = [number]

    def fails(path: str, is_directory: bool) -> bool:
        countdown[0] -= 1
        return countdown[0] == -1

    disk.fails = fails
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    with pytest.raises(SaveFailedError):
        checkpointer.checkpoint(2, model=small_model())
    disk.fails = lambda path, is_directory: False
    Checkpointer(tmp_path / "run").verify(1)
    checkpointer.checkpoint(2, model=small_model())
    Checkpointer(tmp_path / "run").verify(2)


def test_every_name_on_the_way_is_synced_where_it_lies(tmp_path: Path, disk: Disk) -> None:
    """The checkpoint's in the run's directory, that in its parent, and what was made above."""
    storage = open_storage(f"{tmp_path}/a/b/run")
    storage.write("checkpoint=1/f", Chunks([b"x"]), lambda *_: None)
    storage.put("checkpoint=1/manifest.json", b"x")
    made = ("", "/a", "/a/b", "/a/b/run", "/a/b/run/checkpoint=1")
    assert {f"{tmp_path}{name}" for name in made} <= set(disk.synced)
    assert disk.synced[-1] == f"{tmp_path}/a/b/run/checkpoint=1", "the commit itself"


def test_directories_that_another_process_made_are_synced_too(tmp_path: Path, disk: Disk) -> None:
    """It may have been killed before it did, or may be about to."""
    (tmp_path / "run" / "checkpoint=1").mkdir(parents=True)
    open_storage(f"{tmp_path}/run").put("checkpoint=1/manifest.json", b"x")
    assert {str(tmp_path), f"{tmp_path}/run"} <= set(disk.synced)


@pytest.mark.parametrize("above", ["", "/new", "/new/run"])
def test_a_directory_whose_name_was_not_synced_is_synced_the_next_time(
    tmp_path: Path, disk: Disk, above: str
) -> None:
    """The second attempt finds no directory that it takes for durable and is not."""
    storage = open_storage(f"{tmp_path}/new/run")
    disk.fails = lambda path, is_directory: path == f"{tmp_path}{above}"
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            storage.put("checkpoint=1/manifest.json", b"x")
    disk.fails = lambda path, is_directory: False
    storage.put("checkpoint=1/manifest.json", b"x")
    assert f"{tmp_path}{above}" in disk.synced
    assert storage.get("checkpoint=1/manifest.json") == b"x"


def test_put_tells_what_is_in_place_from_what_is_not(tmp_path: Path, disk: Disk) -> None:
    """Before the rename nothing has changed; after it the new is there, perhaps not for good."""
    storage = open_storage(str(tmp_path))
    storage.put("m", b"old")
    disk.renamed.clear()
    disk.fails = lambda path, is_directory: is_directory
    with pytest.raises(OSError) as before:
        storage.put("m", b"new")
    assert not isinstance(before.value, NotDurableError)
    assert storage.get("m") == b"old"
    disk.fails = lambda path, is_directory: is_directory and bool(disk.renamed)
    with pytest.raises(NotDurableError):
        storage.put("m", b"new")
    assert storage.get("m") == b"new"


def test_a_linked_frozen_file_is_synced(tmp_path: Path, disk: Disk) -> None:
    """Its bytes may be those of a copy that was never synced; a failing disk fails the save."""
    train(tmp_path, 2)  # the second links the first's frozen parameters
    frozen = next((tmp_path / "checkpoint=2").glob("model_frozen-*"))
    assert os.stat(frozen).st_nlink == 2
    assert str(frozen) in disk.synced
    storage = open_storage(str(tmp_path))
    disk.fails = lambda path, is_directory: path.endswith("linked")
    with pytest.raises(OSError, match="Input/output"):
        storage.copy(f"checkpoint=2/{frozen.name}", "checkpoint=3/linked")
    assert files(tmp_path / "checkpoint=3") == set()


def test_start_finds_a_disk_that_confirms_nothing(tmp_path: Path, disk: Disk) -> None:
    """A directory that cannot be made durable is told before the first epoch."""
    disk.fails = lambda path, is_directory: True
    with pytest.raises(StorageError, match="Input/output"):
        Checkpointer(tmp_path / "run").start(nn.Linear(2, 2))
    assert not (tmp_path / "run").exists()


def test_the_disk_is_told_of_bytes_before_names_and_of_the_commit_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut can lose, no test sees: the order of the calls is what POSIX promises on."""
    calls: list[tuple[str, str]] = []
    paths: dict[int, str] = {}
    real_open, real_fsync, real_link = os.open, os.fsync, os.link

    def open_(path: Any, *rest: Any) -> int:
        descriptor = real_open(path, *rest)
        paths[descriptor] = os.path.relpath(path, tmp_path)
        return descriptor

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", paths[descriptor]))
        real_fsync(descriptor)

    def link(source: Any, target: Any) -> None:
        calls.append(("link", os.path.relpath(target, tmp_path)))
        real_link(source, target)

    for name, fake in (("open", open_), ("fsync", fsync), ("link", link)):
        monkeypatch.setattr(os, name, fake)
    Checkpointer(tmp_path / "run", blocking=True).checkpoint(1, model=nn.Linear(2, 2))
    monkeypatch.undo()
    here = "run/checkpoint=1"
    commit = calls.index(("link", f"{here}/manifest.json"))
    before, after = calls[:commit], calls[commit + 1 :]
    data = sorted(f"{here}/{path.name}" for path in (tmp_path / here).glob("*-*"))
    assert len(data) == 3
    synced = [name for call, name in before if call == "fsync"]
    assert sorted(name for name in synced if name in data) == data
    last_data = max(synced.index(name) for name in data)
    assert here in synced[last_data:], "their names, before the manifest's"
    assert synced[-2].startswith(f"{here}/.manifest.json")
    assert synced[-1] == here
    assert ("fsync", here) in after
    assert {("fsync", "."), ("fsync", "run")} <= set(before), "the directories' own names"
