"""The contract of a storage: what is written, put, copied and deleted."""

from __future__ import annotations

import os

import pytest

from contract.subjects import Subject
from ray_imuckpt import StorageError
from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import ConflictError, NewFile, NotAFileError, Storage

NAMES = [
    *(
        "with space/a b",
        "ä/ö.json",
        "百/分",
        "100%/50%",
        "a+b/c+d",
        "a#b/c#d",
        "a&b/c=d;e,f",
        "~/-",
    ),
    *("a%20b/c%2Fd", "run[1]/f*", "checkpoint=1/model-00000000000000aa.safetensors", "'q'/(x)!$@"),
]


def write(storage: Storage, name: str, data: bytes, chunk_size: int = 10) -> list[str]:
    """Write a file from scattered memory; return the checksum of each chunk as it was observed."""
    pieces = Chunks([data[:7], b"", data[7:]], chunk_size)
    seen: dict[int, str] = {}

    def observe(index: int, views: list[memoryview]) -> None:
        seen[index] = chunks.checksum(views)

    storage.write(name, pieces, observe)
    return [seen[i] for i in range(len(pieces))]


class WritingContract:
    """What every storage promises to whoever writes.

    Attributes:
        large: Bytes of a file that the backend gets in several parts.
        missing_is_listed: Whether a listing in a bucket that is not there is empty, not an error.
    """

    large = 45 * 1024 * 1024
    missing_is_listed = False

    @pytest.mark.parametrize("size", [0, 1, 10, 1000])
    def test_what_is_written_is_there_and_each_chunk_was_observed(
        self, subject: Subject, size: int
    ) -> None:
        """To the byte, from memory in pieces, in a directory that was not there."""
        data = os.urandom(size)
        sums = write(subject.storage, "a/b.bin", data)
        assert subject.side.look("a/b.bin") == data
        assert sums == [chunks.checksum([data[i : i + 10]]) for i in range(0, size, 10)]
        assert subject.side.names() == ["a/b.bin"]

    def test_large_files_are_whole(self, subject: Subject) -> None:
        """Sent in parts and read in ranges."""
        data = os.urandom(1 << 20) * (self.large >> 20) + b"end"
        sums = write(subject.storage, "a/large", data, chunk_size=1 << 20)
        assert subject.side.look("a/large") == data
        assert sums[-1] == chunks.checksum([b"end"])
        buffer = bytearray(1000)
        begin = self.large // 2 - 1
        subject.storage.read_into("a/large", begin, [memoryview(buffer)], lambda _: None)
        assert buffer == data[begin : begin + 1000]
        assert subject.storage.size("a/large") == len(data)

    @pytest.mark.parametrize("size", [25, None])
    def test_a_write_that_fails_leaves_nothing(self, subject: Subject, size: int | None) -> None:
        """Neither under the name nor an upload under way; the error is the writer's own."""

        def fail(index: int, _: list[memoryview]) -> None:
            if index == 2:
                raise RuntimeError("from the observer")

        pieces = Chunks([bytes(size or self.large)], 10 if size else self.large // 3)
        with pytest.raises(RuntimeError, match="observer"):
            subject.storage.write("a/b", pieces, fail)
        assert subject.side.names() == []
        assert subject.side.unfinished() == 0
        assert subject.storage.uploads() == []

    def test_files_are_written_at_the_same_time(self, subject: Subject) -> None:
        """Each its own bytes; where one fails, none of them stays."""

        def files(fail: bool) -> list[NewFile]:
            def observe(_index: int, views: list[memoryview]) -> None:
                if fail and bytes(views[0][:1]) == b"3":
                    raise RuntimeError("from the observer")

            return [
                NewFile(f"a/{n}", Chunks([b"%d" % n * 1000], chunk_size=300), observe)
                for n in range(6)
            ]

        with pytest.raises(RuntimeError, match="observer"):
            subject.storage.write_all(files(fail=True))
        assert subject.side.names() == []
        subject.storage.write_all(files(fail=False))
        assert subject.side.names() == [f"a/{n}" for n in range(6)]
        for n in range(6):
            assert subject.side.look(f"a/{n}") == b"%d" % n * 1000
        subject.storage.write_all([])

    def test_put_creates_and_replaces(self, subject: Subject) -> None:
        """At once and as a whole; no temporary file stays."""
        for data in (b"old", b"", b"new and longer", b"n"):
            subject.storage.put("a/m.json", data)
            assert subject.side.look("a/m.json") == data
            assert subject.storage.get("a/m.json") == data
        subject.storage.put("top.json", b"1")
        assert subject.side.names() == ["a/m.json", "top.json"]

    def test_a_name_is_that_very_name(self, subject: Subject) -> None:
        """Whatever characters are in it, for every operation; none is a pattern or an escape."""
        storage, side = subject.storage, subject.side
        for name in NAMES:
            storage.put(name, name.encode())
        assert side.names() == sorted(NAMES)
        assert {e.name for e in storage.entries()} == set(NAMES)
        for name in NAMES:
            data, (directory, _, base) = name.encode(), name.partition("/")
            assert side.look(name) == storage.get(name) == data
            assert storage.size(name) == len(data)
            buffer = bytearray(2)
            storage.read_into(name, 1, [memoryview(buffer)], lambda _: None)
            assert buffer == data[1:3]
            assert storage.files(directory) == [base]
            assert storage.holding(base) == [directory]
            if storage.copy(name, f"{directory}/copy of {base}"):
                assert side.look(f"{directory}/copy of {base}") == data
                storage.delete(f"{directory}/copy of {base}")
            storage.delete(name)
            assert name not in side.names()
        assert side.names() == []

    def test_copies_are_the_storages_own_and_independent(self, subject: Subject) -> None:
        """True and there, or False and nothing; either may be deleted."""
        write(subject.storage, "a/f", b"0123456789")
        if subject.storage.copy("a/f", "b/g"):
            assert subject.side.look("b/g") == b"0123456789"
            subject.storage.delete("a/f")
            assert subject.side.names() == ["b/g"]
            assert subject.side.look("b/g") == b"0123456789"
        assert subject.storage.copy("a/none", "b/h") is False
        assert "b/h" not in subject.side.names()

    def test_what_is_deleted_is_gone(self, subject: Subject) -> None:
        """Once or twice, there or not; nothing else is."""
        for name in ("a/m", "a/n", "ab/m"):
            subject.storage.put(name, b"1")
        for _ in range(2):
            subject.storage.delete("a/m")
            assert subject.side.names() == ["a/n", "ab/m"]
        subject.storage.delete("nowhere/m")
        subject.storage.delete_empty("a")
        subject.storage.delete_empty("nowhere")
        assert subject.side.names() == ["a/n", "ab/m"]
        subject.storage.delete("a/n")
        subject.storage.delete_empty("a")
        assert subject.storage.files("a") == []
        assert sorted(subject.storage.holding("m")) == ["ab"]

    def test_that_it_can_be_written_is_tried_and_leaves_nothing(self, subject: Subject) -> None:
        """Before anything is there, and after."""
        subject.storage.check_writable()()
        assert subject.side.names() == []
        subject.storage.put("a/m", b"1")
        subject.storage.check_writable()()
        assert subject.side.names() == ["a/m"]

    def test_what_is_missing_above_is_told_and_not_made(self, subject: Subject) -> None:
        """A bucket by the error of a place that cannot serve; it names the place."""
        if not subject.objects:
            return  # directories are made, however deep
        with pytest.raises(StorageError) as caught:
            subject.missing.check_writable()
        assert subject.missing.url in str(caught.value)
        assert caught.value.hint
        if self.missing_is_listed:
            assert subject.missing.holding("m") == []
        else:
            with pytest.raises(StorageError):
                subject.missing.holding("m")
        with pytest.raises(OSError, match=".") as raised:
            subject.missing.put("m", b"1")
        assert not isinstance(raised.value, (ConflictError, NotAFileError))
