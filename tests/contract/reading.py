"""The contract of a storage: what is read, listed and told."""

from __future__ import annotations

import os

import pytest

from contract.subjects import Subject
from contract.writing import write
from ray_imuckpt.storage import (
    Upload,
    from_arrow,
    open_storage,
    same_directory,
    to_arrow,
)


class NotedReading:
    """A part of a file that is wanted, and how reading it ended.

    Attributes:
        name: The file's.
        offset: Where in it the part begins.
        size: The part's.
        data: What was read.
        passed: What was shown on the way.
        ends: What was said at the end, each time.
    """

    def __init__(self, name: str, offset: int, size: int) -> None:
        self.name, self.offset, self.size = name, offset, size
        self.data = bytearray(size)
        self.views = [memoryview(self.data)[: size // 2], memoryview(self.data)[size // 2 :]]
        self.passed = b""
        self.ends: list[OSError | EOFError | None] = []

    def seen(self, view: memoryview) -> None:
        """Implement `Reading.seen`."""
        self.passed += bytes(view)

    def ended(self, error: OSError | EOFError | None) -> None:
        """Implement `Reading.ended`."""
        self.ends.append(error)


class ReadingContract:
    """What every storage promises to whoever reads."""

    def test_bytes_go_where_they_are_wanted(self, subject: Subject) -> None:
        """Into views of any sizes, one after the other, each shown in order when it is filled."""
        data = os.urandom(300_000)
        subject.side.plant("a/f", data)
        for offset, sizes in ((0, [300_000]), (1, [0, 1, 99_999, 0, 7]), (299_999, [1]), (5, [])):
            buffers = [bytearray(size) for size in sizes]
            views = [memoryview(buffer) for buffer in buffers]
            seen: list[memoryview] = []
            subject.storage.read_into("a/f", offset, views, seen.append)
            expected = data[offset : offset + sum(sizes)]
            assert b"".join(buffers) == expected
            assert b"".join(seen) == expected

    def test_reading_past_the_end_is_an_error(self, subject: Subject) -> None:
        """By one byte, from the end on, and from behind it."""
        subject.side.plant("a/f", b"0123456789")
        for offset, size in ((5, 6), (10, 1), (20, 5)):
            view = memoryview(bytearray(size))
            with pytest.raises(EOFError):
                subject.storage.read_into("a/f", offset, [view], lambda _: None)

    def test_many_parts_are_read_at_the_same_time(self, subject: Subject) -> None:
        """Each of its own bytes, in any order; what cannot be read is told to that one alone."""
        data = {f"a/{n}": os.urandom(50_000) for n in range(3)}
        for name, content in data.items():
            subject.side.plant(name, content)
        sound = [
            NotedReading(f"a/{n % 3}", begin, size)
            for n, (begin, size) in enumerate(
                [(0, 50_000), (7, 1), (40_000, 10_000), (8, 0), (5, 9)]
            )
        ]
        behind, missing = NotedReading("a/0", 49_999, 2), NotedReading("a/none", 0, 5)
        subject.storage.read_all([*sound, behind, missing])
        for reading in sound:
            expected = data[reading.name][reading.offset : reading.offset + reading.size]
            assert reading.data == reading.passed == expected
            assert reading.ends == [None]
        assert [type(error) for error in behind.ends] == [EOFError]
        assert [isinstance(error, FileNotFoundError) for error in missing.ends] == [True]

    def test_what_is_not_there_is_not_found(self, subject: Subject) -> None:
        """By that very error; in a directory that is there, and in one that is not."""
        subject.side.plant("a/f", b"1")
        for name in ("a/none", "none/f"):
            with pytest.raises(FileNotFoundError):
                subject.storage.get(name)
            with pytest.raises(FileNotFoundError):
                subject.storage.size(name)
            view = memoryview(bytearray(6))
            with pytest.raises(FileNotFoundError):
                subject.storage.read_into(name, 0, [view], lambda _: None)

    def test_a_directory_is_not_read_as_a_file(self, subject: Subject) -> None:
        """Whatever the backend calls that."""
        subject.side.plant("a/f", b"1")
        with pytest.raises(OSError, match=r"."):
            subject.storage.get("a")

    def test_holding_finds_directories_by_their_marker(self, subject: Subject) -> None:
        """Those at the top, and itself; not what lies deeper, nor names that begin alike."""
        for name in ("a/m", "b/m", "b/x", "c/x", "d/deep/m", "e/mm", "mm"):
            subject.side.plant(name, b"1")
        assert sorted(subject.storage.holding("m")) == ["a", "b"]
        subject.side.plant("m", b"1")
        assert sorted(subject.storage.holding("m")) == ["", "a", "b"]
        subject.side.plant("f/m", b"1")
        assert sorted(subject.storage.holding("m")) == ["", "a", "b", "f"], "no listing is old"

    def test_a_directory_that_is_empty_holds_nothing(self, subject: Subject) -> None:
        """Nor one that is not there, where that can be told."""
        subject.storage.check_writable()()
        try:
            assert subject.storage.holding("m") == []
        except FileNotFoundError:
            assert subject.objects
        assert subject.storage.entries() == []
        assert subject.storage.files("a") == []

    def test_files_are_those_of_one_directory(self, subject: Subject) -> None:
        """Not those below it; of a directory that is not there, none; of itself, its own."""
        for name in ("top", "a/m", "a/n", "a/deep/x", "ab/y"):
            subject.side.plant(name, b"1")
        assert sorted(subject.storage.files("a")) == ["m", "n"]
        assert subject.storage.files("nowhere") == []
        assert subject.storage.files("top") == []
        assert subject.storage.files("") == ["top"]

    def test_entries_tell_size_and_age(self, subject: Subject) -> None:
        """Of the files here and in the directories here, by the backend's own clock."""
        before = subject.storage.clock()
        for name, size in (("top", 3), ("a/m", 1), ("b/n", 0)):
            subject.side.plant(name, bytes(size))
        found = {e.name: e for e in subject.storage.entries()}
        assert {name: e.size for name, e in found.items()} == {"top": 3, "a/m": 1, "b/n": 0}
        for entry in found.values():
            assert entry.modified is not None
            assert abs(entry.modified - before) < 3600
        assert subject.side.names() == ["a/m", "b/n", "top"], (
            "what the clock was asked with is gone"
        )

    def test_many_files_are_listed_whole(self, subject: Subject) -> None:
        """However many pages that takes."""
        for number in range(30):
            subject.side.plant(f"d{number}/m", b"1")
        assert sorted(subject.storage.holding("m")) == sorted(f"d{n}" for n in range(30))
        assert len(subject.storage.entries()) == 30

    def test_entries_are_listed_as_deep_as_is_asked(self, subject: Subject) -> None:
        """From three levels on without what is hidden."""
        for name in ("top", "a/m", "a/b/m", "a/b/c/m", "a/b/c/d/m", ".git/m", "a/.venv/m"):
            subject.side.plant(name, b"1")
        levels = {n: sorted(e.name for e in subject.storage.entries(n)) for n in (2, 3, 4)}
        assert levels[2] == [".git/m", "a/m", "top"]
        assert levels[3] == ["a/b/m", "a/m", "top"]
        assert levels[4] == ["a/b/c/m", "a/b/m", "a/m", "top"]

    def test_a_child_and_a_parent_are_directories_too(self, subject: Subject) -> None:
        """With the same files under other names."""
        subject.side.plant("a/m", b"1")
        child = subject.storage.child("a")
        assert child.get("m") == b"1"
        child.put("n", b"2")
        assert subject.side.look("a/n") == b"2"
        assert subject.storage.get("a/n") == b"2"
        assert same_directory(child.parent(), subject.storage)
        assert not same_directory(child, subject.storage)
        assert child.parent().get("a/m") == b"1"
        deeper = child.child("b")
        assert deeper.url == f"{subject.storage.url}/a/b"
        deeper.put("m", b"3")
        assert subject.side.look("a/b/m") == b"3"
        assert same_directory(deeper.parent().parent(), subject.storage)
        base = subject.storage.url.rpartition("/")[2]
        assert subject.storage.parent().child(base).get("a/m") == b"1"

    def test_the_way_through_pyarrow_leads_to_the_same_directory(self, subject: Subject) -> None:
        """As Ray hands a storage to its workers."""
        subject.storage.put("a", b"1")
        again = from_arrow(*to_arrow(subject.storage))
        assert again.get("a") == b"1"
        assert same_directory(subject.storage, again)
        assert not same_directory(subject.storage, open_storage("memory://elsewhere"))

    def test_what_another_process_writes_is_seen_at_once(self, subject: Subject) -> None:
        """No listing and no content is remembered."""
        storage, other = subject.storage, subject.again()
        assert storage.files("a") == []
        other.put("a/m", b"1")
        assert (storage.files("a"), storage.get("a/m"), storage.size("a/m")) == (["m"], b"1", 1)
        other.put("a/m", b"22")
        assert (storage.get("a/m"), storage.size("a/m")) == (b"22", 2)
        assert [e.size for e in storage.entries()] == [2]
        other.delete("a/m")
        assert storage.files("a") == []
        with pytest.raises(FileNotFoundError):
            storage.get("a/m")

    def test_without_uploads_none_are_listed(self, subject: Subject) -> None:
        """And giving up one that has ended does nothing."""
        subject.storage.put("a/m", b"1")
        assert subject.storage.uploads() == []
        subject.storage.abort(Upload("a/m", "no-such-upload", 0.0))
        assert subject.side.names() == ["a/m"]

    def test_a_directory_is_no_link(self, subject: Subject) -> None:
        """Nor is what is not there."""
        subject.side.plant("a/m", b"1")
        assert not subject.storage.is_link("a")
        assert not subject.storage.is_link("nowhere")

    def test_a_file_written_here_is_read_there(self, subject: Subject) -> None:
        """By whoever opens the same directory."""
        write(subject.storage, "a/f", b"0123456789")
        again = subject.again()
        assert again.url == subject.storage.url
        assert again.get("a/f") == b"0123456789"
        assert same_directory(again, subject.storage)
