"""The operations on the modelled file system, one class for each. Touches the model only."""

from __future__ import annotations

from dataclasses import dataclass

from support.disk.model import Directory, File, FileSystem


@dataclass(frozen=True)
class Create:
    """Make an empty file."""

    path: str
    number: int

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        directory, name = system.place(self.path)
        assert name not in directory.volatile, f"{self.path} is opened without O_EXCL"
        file = system.files[self.number] = File(self.number)
        directory.change(added=name, node=file)


@dataclass(frozen=True)
class Write:
    """Write bytes at a place of a file."""

    number: int
    data: bytes
    offset: int

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        file = system.files[self.number]
        begin, end = self.offset, self.offset + len(self.data)
        old = file.volatile.ljust(begin, b"\0")
        file.volatile = old[:begin] + self.data + old[end:]

    def torn(self, length: int) -> Write:
        """Return the write of the first bytes only."""
        return Write(self.number, self.data[:length], self.offset)


@dataclass(frozen=True)
class Allocate:
    """Give a file a size."""

    number: int
    size: int

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        file = system.files[self.number]
        file.volatile = file.volatile.ljust(self.size, b"\0")


@dataclass(frozen=True)
class SyncFile:
    """Make a file's bytes durable, or fail at it."""

    number: int
    fails: bool = False

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        file = system.files[self.number]
        file.lost = file.lost or self.fails
        if not file.lost:
            file.durable = file.volatile


@dataclass(frozen=True)
class SyncDirectory:
    """Make a directory's entries durable, or fail at it.

    Unlike bytes, entries that one fsync could not write are written by a later one that succeeds:
    a journal that has failed lets no later one succeed.
    """

    path: str
    fails: bool = False

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        if not self.fails:
            system.directory(self.path).sync()


@dataclass(frozen=True)
class MakeDirectory:
    """Make an empty directory."""

    path: str

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        directory, name = system.place(self.path)
        directory.change(added=name, node=Directory())


@dataclass(frozen=True)
class Link:
    """Give a file a second name."""

    source: str
    target: str

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        directory, name = system.place(self.target)
        directory.change(added=name, node=system.find(self.source))


@dataclass(frozen=True)
class Rename:
    """Give a file or directory another name in the same directory, over what has it."""

    source: str
    target: str

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        directory, old = system.place(self.source)
        target, new = system.place(self.target)
        assert directory is target, "a rename between directories is two changes, not modelled"
        directory.change(old, added=new, node=system.find(self.source))


@dataclass(frozen=True)
class Remove:
    """Take a name away, of a file or of an empty directory."""

    path: str

    def apply(self, system: FileSystem) -> None:
        """Do it."""
        directory, name = system.place(self.path)
        directory.change(name)


Operation = (
    Create | Write | Allocate | SyncFile | SyncDirectory | MakeDirectory | Link | Rename | Remove
)
