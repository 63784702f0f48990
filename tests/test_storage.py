"""One set of tests that every kind of storage passes; checked through a side door."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest

from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import (
    NotAFileError,
    Storage,
    absolute,
    from_arrow,
    open_storage,
    same_directory,
    to_arrow,
)


class Place:
    """A storage, and a way to look at it that does not pass through it."""

    def __init__(self, storage: Storage, filesystem: Any, root: str) -> None:
        self.storage, self._fs, self._root = storage, filesystem, root

    def look(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        root = self._root.lstrip("/") + "/"
        return sorted(p.lstrip("/").removeprefix(root) for p in self._fs.find(self._root))


@pytest.fixture(params=["local", "file", "memory", "arrow-local", "arrow-fsspec", "arrow-mock"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of storage, on an empty directory."""
    local = fsspec.filesystem("file")
    memory = fsspec.filesystem("memory")
    root = f"{tmp_path}/run"
    in_memory = f"/{tmp_path.name}/run"
    if request.param == "local":
        yield Place(open_storage(root), local, root)
    elif request.param == "file":
        yield Place(open_storage(f"file://{root}"), local, root)
    elif request.param == "memory":
        yield Place(open_storage(f"memory:/{in_memory}"), memory, in_memory)
    elif request.param == "arrow-local":
        yield Place(from_arrow(pyarrow.fs.LocalFileSystem(), root), local, root)
    elif request.param == "arrow-fsspec":
        wrapped = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory))
        yield Place(from_arrow(wrapped, in_memory), memory, in_memory)
    else:  # a file system that only pyarrow knows, as Ray uses for s3://
        tmp_path.joinpath("run").mkdir()
        subtree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        yield Place(from_arrow(subtree, "run"), local, root)
    if memory.exists(in_memory):
        memory.rm(in_memory, recursive=True)


def write(place: Place, name: str, data: bytes, chunk_size: int = 10) -> list[str]:
    """Write through the storage; the checksums that were observed."""
    pieces = Chunks([data[:7], b"", data[7:]], chunk_size)
    seen: dict[int, str] = {}
    place.storage.write(name, pieces, lambda i, views: seen.update({i: chunks.checksum(views)}))
    return [seen[i] for i in range(len(pieces))]


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 1000])
def test_what_is_written_is_there_and_each_chunk_was_observed(place: Place, size: int) -> None:
    """Through the side door too; the observer sees each chunk's bytes."""
    data = os.urandom(size)
    sums = write(place, "a/b.bin", data)
    assert place.look("a/b.bin") == data
    assert sums == [chunks.checksum([data[i : i + 10]]) for i in range(0, size, 10)]
    assert place.storage.size("a/b.bin") == size
    assert place.storage.get("a/b.bin") == data


def test_large_files_are_whole(place: Place) -> None:
    """Written in many chunks, and read in the middle."""
    data = os.urandom(1 << 20) * 70
    write(place, "a/large", data, chunk_size=8 << 20)
    assert place.look("a/large") == data
    buffer = bytearray(1000)
    place.storage.read_into("a/large", 35_000_000, [memoryview(buffer)], lambda _: None)
    assert buffer == data[35_000_000:35_001_000]


def test_reading_past_the_end_is_an_error(place: Place) -> None:
    """So is reading what is not there; never fewer bytes."""
    write(place, "a/b", b"0123456789")
    with pytest.raises(EOFError):
        place.storage.read_into("a/b", 5, [memoryview(bytearray(6))], lambda _: None)
    with pytest.raises(FileNotFoundError):
        place.storage.read_into("a/none", 0, [memoryview(bytearray(6))], lambda _: None)
    with pytest.raises(FileNotFoundError):
        place.storage.get("a/none")
    with pytest.raises(FileNotFoundError):
        place.storage.size("a/none")


def test_put_creates_and_replaces(place: Place) -> None:
    """As a whole, and without a temporary file left over."""
    place.storage.put("top.json", b"1")
    place.storage.put("a/m.json", b"old")
    place.storage.put("a/m.json", b"new")
    assert (place.look("a/m.json"), place.look("top.json")) == (b"new", b"1")
    assert place.names() == ["a/m.json", "top.json"], "no temporary file is left"


@pytest.mark.parametrize("size", [25, 70 << 20])
def test_a_write_that_fails_leaves_nothing_under_the_name(place: Place, size: int) -> None:
    """Nor anything else, for small files and for large ones."""

    def fail(index: int, views: list[memoryview]) -> None:
        if index == 2:
            raise RuntimeError("from the observer")

    pieces = Chunks([b"x" * size], 10 if size < 100 else 16 << 20)
    with pytest.raises(RuntimeError, match="observer"):
        place.storage.write("a/b", pieces, fail)
    assert place.names() == []


def test_holding_finds_directories_by_their_marker(place: Place) -> None:
    """One level down, and the directory itself."""
    place.storage.check_writable()
    assert place.storage.holding("m") == []
    for name in ("a/m", "b/m", "b/x", "c/x", "d/deep/m"):
        place.storage.put(name, b"1")
    assert sorted(place.storage.holding("m")) == ["a", "b"]
    place.storage.put("m", b"1")
    assert sorted(place.storage.holding("m")) == ["", "a", "b"], "itself a marked one"
    assert sorted(place.storage.files("b")) == ["m", "x"]
    assert place.storage.files("nowhere") == []


def test_deleting(place: Place) -> None:
    """What is not there is no error."""
    place.storage.put("a/m", b"1")
    place.storage.put("a/n", b"1")
    place.storage.delete("a/m")
    place.storage.delete("a/m")
    assert place.names() == ["a/n"]
    place.storage.delete("a/n")
    assert place.names() == []
    assert place.storage.files("a") == []


def test_directories_are_reached_without_gluing_names(place: Place) -> None:
    """A child and a parent are the directories that their names and URLs say."""
    child = place.storage.child("a").child("b")
    assert child.url == f"{place.storage.url}/a/b"
    child.put("m", b"1")
    write(place, "a/b/n", b"2" * 30)
    assert place.names() == ["a/b/m", "a/b/n"]
    assert sorted(place.storage.child("a/b").files("")) == ["m", "n"]
    assert same_directory(child.parent().parent(), place.storage)
    assert place.storage.parent().child("run").get("a/b/m") == b"1"


def test_a_file_that_is_too_large_is_not_read_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get` is for records: of what is larger no more is read than tells so."""
    for module in ("local", "client"):
        monkeypatch.setattr(f"ray_imuckpt.storage.{module}.MAX_RECORD", 100)
    place.storage.put("m", bytes(100))
    assert place.storage.get("m") == bytes(100)
    place.storage.put("m", bytes(101))
    with pytest.raises(NotAFileError, match="record"):
        place.storage.get("m")


def test_copy_is_the_storages_own_and_independent(place: Place) -> None:
    """Where it has one, the copy outlives its source; else it says no and leaves nothing."""
    write(place, "a/f", b"0123456789")
    if place.storage.copy("a/f", "b/g"):
        assert place.look("b/g") == b"0123456789"
        place.storage.delete("a/f")
        assert place.look("b/g") == b"0123456789"
    assert place.storage.copy("a/none", "b/h") is False
    assert "b/h" not in place.names()


def test_round_trip_through_pyarrow_is_the_same_directory(place: Place) -> None:
    """What Ray speaks of and what we do is one place."""
    place.storage.put("a", b"1")
    again = from_arrow(*to_arrow(place.storage))
    assert again.get("a") == b"1"
    assert same_directory(place.storage, again)
    assert not same_directory(place.storage, open_storage("memory://elsewhere"))


def test_local_disks_in_disguise_are_local(tmp_path: Path) -> None:
    """Only there is `put` atomic."""
    wrapped = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("file")))
    subtree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    for storage in (from_arrow(wrapped, f"{tmp_path}/a"), from_arrow(subtree, "a")):
        assert storage.url == f"{tmp_path}/a"
        storage.put("m", b"1")
        before = os.stat(tmp_path / "a" / "m").st_ino
        storage.put("m", b"2")
        assert os.stat(tmp_path / "a" / "m").st_ino != before


def test_urls_mean_the_same_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths, home directories and file:// become absolute."""
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/a") == f"{tmp_path}/runs/a"
    assert absolute(Path("runs")) == f"{tmp_path}/runs"
    assert absolute("file:///x/y") == "/x/y"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
    assert absolute("~/x") == os.path.expanduser("~/x")


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    """A name is used once: it is a FileExistsError."""
    storage = open_storage(str(tmp_path))
    storage.put("a/f", b"old")
    with pytest.raises(FileExistsError):
        storage.write("a/f", Chunks([b"new"]), lambda index, views: None)
    assert (tmp_path / "a" / "f").read_bytes() == b"old"


def test_chunks_show_scattered_bytes_without_copying_large_ones() -> None:
    """Each chunk has its bytes, and large ones are views of the memory."""
    big = bytearray(os.urandom(300_000))
    small = [os.urandom(n % 50) for n in range(500)]
    pieces = Chunks([b"head", big, *small], chunk_size=100_000)
    whole = b"head" + bytes(big) + b"".join(small)
    assert pieces.size == len(whole)
    assert [b"".join(pieces[i]) for i in range(len(pieces))] == [
        whole[begin:end] for begin, end in chunks.ranges(len(whole), 100_000)
    ]
    big[50_000] ^= 0xFF
    assert b"".join(pieces[0])[50_004] == big[50_000], "the chunk is a view of the memory"
    with pytest.raises(IndexError):
        pieces[len(pieces)]
