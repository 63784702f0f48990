"""File systems with habits of their own: each keeps the promises, or is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from torch import nn

import filesystems
from conftest import small_model
from filesystems import checkpointer_on, storage_on
from ray_imuckpt import Checkpointer, SaveFailedError, StorageError
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import from_arrow, open_storage, same_directory, to_arrow
from ray_imuckpt.storage.local import LocalStorage


@pytest.fixture(autouse=True)
def _empty() -> None:
    """Each test finds empty disks, with a directory for runs."""
    kinds: list[Any] = [kind for kind in vars(filesystems).values() if isinstance(kind, type)]
    for kind in kinds:
        if "FILES" in vars(kind):
            kind.FILES.clear()
            kind.DIRECTORIES.clear()
            kind.DIRECTORIES.update({"", "/data"})


class Died(BaseException):
    """The process ends here."""


def die_in_write(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Die when half of a file is written whose name holds `of`."""
    real = filesystems.Growing.write

    def write(self: filesystems.Growing, data: Any) -> int:
        if of in self._path:
            real(self, bytes(data)[: len(data) // 2])
            raise Died
        return real(self, data)

    monkeypatch.setattr(filesystems.Growing, "write", write)


@pytest.mark.parametrize(
    "kind",
    [filesystems.Renaming, filesystems.Whole, filesystems.Short, filesystems.OneThread],
)
def test_a_run_on_a_disk_behind_a_protocol(kind: Any) -> None:
    """Saved, saved again, listed, verified, restored and pruned."""
    checkpointer = checkpointer_on(storage_on(kind()))
    assert checkpointer.start(small_model()).start_epoch == 1
    assert set(kind.FILES) == set(), "what was written to try is gone"
    for epoch in (1, 2, 2, 3):
        checkpointer.checkpoint(epoch, model=small_model(epoch), log=list(range(9000)))
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3]
    for epoch in (1, 2, 3):
        checkpointer.verify(epoch)
    assert checkpointer.start(small_model()).log == list(range(9000))
    assert checkpointer.prune(keep_last=1) == [1, 2]
    rest = [n for n in kind.FILES if "checkpoint=3/" not in n and not n.endswith("lineage.json")]
    assert all("checkpoint=2/" in name for name in rest), "what was replaced stays for a day"
    assert not [name for name in rest if name.endswith("manifest.json")]
    assert not [name for name in kind.FILES if name.endswith(".tmp")]


def test_a_manifest_is_never_seen_half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the middle of the commit of an epoch that was committed before."""
    kind = filesystems.Renaming
    checkpointer = checkpointer_on(storage_on(kind()))
    checkpointer.checkpoint(1, model=small_model(), log=["old"])
    with monkeypatch.context() as patch:
        die_in_write(patch, "manifest.json")
        with pytest.raises(Died):
            checkpointer_on(storage_on(kind())).checkpoint(1, model=small_model(), log=["new"])
    again = checkpointer_on(storage_on(kind()))
    again.verify(1)
    assert again.read(1).log == ["old"]
    with monkeypatch.context() as patch:  # and one that was not
        die_in_write(patch, "manifest.json")
        with pytest.raises(Died):
            checkpointer_on(storage_on(kind())).checkpoint(2, model=small_model())
    assert checkpointer_on(storage_on(kind())).list_existing_checkpoint_indices() == [1]


@pytest.mark.parametrize(
    "kind",
    [filesystems.Keeping, filesystems.Refusing, filesystems.Deleting, filesystems.Neither],
)
@pytest.mark.parametrize("continue_from", ["last", "none"])
def test_what_cannot_replace_a_file_in_one_step_is_refused_at_start(
    kind: Any, continue_from: str
) -> None:
    """By the name of the file system, before the first epoch; nothing is left there."""
    checkpointer = checkpointer_on(storage_on(kind()))
    with pytest.raises(StorageError, match=kind.__name__) as caught:
        checkpointer.start(nn.Linear(2, 2), continue_from=continue_from)
    assert caught.value.hint
    assert set(kind.FILES) == set()


def test_without_start_it_is_refused_by_the_save() -> None:
    """Nothing is committed on what is known to lose commits."""
    for kind in (filesystems.Deleting, filesystems.Neither):
        with pytest.raises((StorageError, SaveFailedError), match="one step"):
            checkpointer_on(storage_on(kind())).checkpoint(1, model=small_model())


@pytest.mark.parametrize("kind", [filesystems.Whole, filesystems.Short])
def test_a_range_that_is_not_heeded_is_read_all_the_same(kind: Any) -> None:
    """The right bytes, or `EOFError` behind the end; a file is fetched whole once at most."""
    filesystem = kind()
    storage = storage_on(filesystem)
    storage.put("f", bytes(range(100)))
    for begin, length in ((0, 100), (10, 7), (93, 7), (0, 1), (40, 60)):
        buffer = bytearray(length)
        storage.read_into("f", begin, [memoryview(buffer)], lambda _: None)
        assert buffer == bytes(range(begin, begin + length))
    with pytest.raises(EOFError, match="ends at byte 100"):
        storage.read_into("f", 95, [memoryview(bytearray(6))], lambda _: None)
    assert filesystem.calls.count("cat_file") <= 2


def test_a_local_disk_in_any_disguise_is_local(tmp_path: Path) -> None:
    """Only through `os` is a commit atomic there: wrappers are taken off."""
    local = fsspec.filesystem("file")
    places = [
        storage_on(DirFileSystem(str(tmp_path), local), "run"),
        storage_on(DirFileSystem("x", DirFileSystem(str(tmp_path), local)), "../run"),
        storage_on(DirFileSystem(str(tmp_path), local), "/run"),
        open_storage(f"simplecache::file://{tmp_path}/run"),
    ]
    for place in places:
        assert isinstance(place, LocalStorage)
        assert place.url == f"{tmp_path}/run"


def test_the_asynchronous_wrapper_is_taken_off_too(tmp_path: Path) -> None:
    """It came with fsspec 2024.10."""
    wrapper = pytest.importorskip("fsspec.implementations.asyn_wrapper").AsyncFileSystemWrapper
    wrapped = wrapper(fsspec.filesystem("file"), asynchronous=False)
    assert isinstance(storage_on(wrapped, f"{tmp_path}/run"), LocalStorage)


def test_a_subdirectory_of_a_store_is_that_place(tmp_path: Path) -> None:
    """What is behind `DirFileSystem` is told by its own URL, and behaves as itself."""
    inner = DirFileSystem(f"/{tmp_path.name}", fsspec.filesystem("memory"))
    place = storage_on(inner, "run")
    assert place.url == f"memory:///{tmp_path.name}/run"
    place.put("m", b"1")
    assert open_storage(f"memory://{tmp_path.name}/run").get("m") == b"1"


def test_one_place_however_it_was_reached() -> None:
    """By a URL with a host, or by the file system that Ray hands to a worker; no password shown."""
    fsspec.register_implementation("hosted", filesystems.Hosted, clobber=True)
    url = "hosted://me:secret@host/data/run"
    storage = open_storage(url)
    assert storage.url == "hosted://me@host/data/run"
    assert storage.parent().child("other").url == "hosted://me@host/data/other"
    assert same_directory(storage, from_arrow(*to_arrow(storage)))
    assert not same_directory(storage, from_arrow(*to_arrow(storage.parent().child("other"))))
    assert not same_directory(storage, open_storage("hosted://me@elsewhere/data/run"))
    assert not same_directory(storage, open_storage("/data/run"))
    assert "secret" not in repr(Checkpointer(url))
    with pytest.raises(ValueError, match="me:…@host") as caught:
        Checkpointer(url + "?x")
    assert "secret" not in str(caught.value)


def test_a_missing_place_behind_a_protocol_is_no_empty_one() -> None:
    """`None` where the directory would be made; an error where that is missing, too."""
    here = storage_on(filesystems.Renaming(), "/data/run")
    assert checkpointer_on(here).list_existing_checkpoint_indices() == []
    nowhere = storage_on(filesystems.Renaming(), "/unmounted/runs/a")
    with pytest.raises(StorageError, match="could not be listed"):
        checkpointer_on(nowhere).list_existing_checkpoint_indices()


def test_a_directory_that_cannot_be_listed_fails_the_whole_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk of fsspec itself would pass over it, and an older epoch would be the last."""
    kind = filesystems.Renaming
    checkpointer = checkpointer_on(storage_on(kind()))
    for epoch in (1, 2):
        checkpointer.checkpoint(epoch, model=small_model())
    real = kind.ls

    def ls(self: Any, path: str, **rest: Any) -> Any:
        if path.endswith("checkpoint=2"):
            raise PermissionError(path)
        return real(self, path, **rest)

    monkeypatch.setattr(kind, "ls", ls)
    with pytest.raises(StorageError, match="PermissionError"):
        checkpointer.index_of_last_checkpoint()


def test_nothing_is_changed_through_a_link_behind_a_protocol(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on the local disk: read, but neither pruned nor saved again; named in a warning."""
    kind = filesystems.Linked
    checkpointer = checkpointer_on(storage_on(kind()))
    for epoch in (1, 2, 3):
        checkpointer.checkpoint(epoch, model=small_model())
    kind.LINKS = {"/data/run/checkpoint=1"}
    before = {name: data for name, data in kind.FILES.items() if "checkpoint=1" in name}
    again = checkpointer_on(storage_on(kind()))
    assert again.list_existing_checkpoint_indices() == [1, 2, 3]
    again.verify(1)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        assert again.prune(keep_last=1) == [2]
    assert "checkpoint=1: it is a symbolic link" in caplog.text
    with pytest.raises(SaveFailedError, match="Remove the link"):
        checkpointer_on(storage_on(kind())).checkpoint(1, model=small_model())
    with pytest.raises(OSError, match="symbolic link"):
        storage_on(kind()).delete("checkpoint=1/manifest.json")
    with pytest.raises(OSError, match="symbolic link"):
        storage_on(kind()).child("checkpoint=1").delete("manifest.json")
    assert {name: data for name, data in kind.FILES.items() if "checkpoint=1" in name} == before


def test_names_are_no_patterns(tmp_path: Path) -> None:
    """Deleting from a directory called `run*` deletes nothing of `run1`."""
    for name in ("run*", "run1"):
        with Checkpointer(f"memory://{tmp_path.name}/{name}", blocking=True) as checkpointer:
            for epoch in (1, 2):
                checkpointer.checkpoint(epoch, model=small_model())
    assert Checkpointer(f"memory://{tmp_path.name}/run*").prune(keep_last=1) == [1]
    other = Checkpointer(f"memory://{tmp_path.name}/run1")
    assert other.list_existing_checkpoint_indices() == [1, 2]
    other.verify(1)


def test_a_data_file_that_breaks_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its bytes were visible while they were written."""
    kind = filesystems.Renaming
    storage = storage_on(kind())
    monkeypatch.setattr("ray_imuckpt.storage.engines.fsspec_engine.FsspecEngine.smallest_part", 10)

    def fail(index: int, views: list[memoryview]) -> None:
        if index == 2:
            raise RuntimeError("from the observer")

    with pytest.raises(RuntimeError, match="observer"):
        storage.write("a/b", Chunks([b"x" * 100], 30), fail)
    assert set(kind.FILES) == set()
