"""Storages beyond the one contract (tests/contract): the local disk's own ways, names, records."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import fsspec
import pyarrow.fs
import pytest

from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import NotAFileError, absolute, from_arrow, open_storage


def test_a_file_that_is_too_large_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get` is for records: of what is larger no more is read than tells so."""
    for module in ("local", "remote"):
        monkeypatch.setattr(f"ray_imuckpt.storage.{module}.MAX_RECORD", 100)
    for url in (str(tmp_path), f"memory:/{tmp_path}"):
        storage = open_storage(url)
        storage.put("m", bytes(100))
        assert storage.get("m") == bytes(100)
        storage.put("m", bytes(101))
        with pytest.raises(NotAFileError, match="record"):
            storage.get("m")


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


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_reserves_no_room_takes_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """To reserve it finds a full disk early, and is nothing that a checkpoint needs."""

    def reserve(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    open_storage(str(tmp_path)).write("a/f", Chunks([b"new"]), lambda index, views: None)
    assert (tmp_path / "a" / "f").read_bytes() == b"new"


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


@pytest.mark.parametrize("length", [3, 300])
def test_a_chunk_of_many_small_buffers_gives_the_collector_nothing_to_do(length: int) -> None:
    """Thousands of them become few views; that they all lived at once cost half of the time."""
    small = [memoryview(bytes([n % 251]) * length) for n in range(20_000)]
    pieces = Chunks(small)
    runs: list[str] = []
    gc.collect()
    gc.callbacks.append(note := lambda phase, _: runs.append(phase))
    try:
        whole = pieces[0]
    finally:
        gc.callbacks.remove(note)
    assert len(runs) < 20, "it was over a hundred when all of them lived at once"
    assert len(whole) <= 1 + 20_000 * length // 2**16
    assert b"".join(whole) == b"".join(small)
