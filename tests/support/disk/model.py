"""A model of a POSIX file system that knows what a crash leaves. Touches nothing but itself.

Every file and directory has two views. The volatile one is what processes see, and what is left
when a process is killed. The durable one is what fsync has promised. After a power loss, each
change that no fsync covers may have reached the disk or not, whatever became of the others: POSIX
orders nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Union

Tree = dict[str, Union["Tree", tuple[int, bytes]]]
"""A directory: for each name a directory, or a file's number and bytes. Links share the number."""


@dataclass(eq=False)
class File:
    """A file; it may have several names, or none.

    Attributes:
        number: In the order of creation.
        volatile: The bytes that processes read.
        durable: The bytes that were last synced.
        lost: Whether an fsync of it has failed. The kernel tells that once and forgets which bytes
            it could not write, so that no later fsync makes anything sure.
    """

    number: int
    volatile: bytes = b""
    durable: bytes = b""
    lost: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a directory's entries that is not durable: names that go, and one that comes."""

    removed: tuple[str, ...]
    added: str = ""
    node: File | Directory | None = None

    def make(self, entries: dict[str, Any]) -> None:
        """Change `entries`."""
        for name in self.removed:
            entries.pop(name, None)
        if self.node is not None:
            entries[self.added] = self.node


@dataclass(eq=False)
class Directory:
    """A directory: what it shows, what is durable of that, and the changes between the two."""

    volatile: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, *removed: str, added: str = "", node: File | Directory | None = None) -> None:
        """Change the entries, for now only as processes see them."""
        change = Change(removed, added, node)
        change.make(self.volatile)
        self.pending.append(change)

    def sync(self) -> None:
        """Make the entries durable."""
        self.durable = dict(self.volatile)
        self.pending = []


class FileSystem:
    """A tree of files and directories; paths are relative to its top, which is ``""``.

    Args:
        tree: What is there at first, all of it durable.
    """

    def __init__(self, tree: Tree) -> None:
        self.files: dict[int, File] = {}
        self.top = self._made(tree)

    def _made(self, tree: Tree) -> Directory:
        directory = Directory()
        for name, node in tree.items():
            if isinstance(node, dict):
                directory.volatile[name] = self._made(node)
            else:
                number, data = node
                self.files.setdefault(number, File(number, data, data))
                directory.volatile[name] = self.files[number]
        directory.sync()
        return directory

    def find(self, path: str) -> File | Directory:
        """Return what has this path.

        Raises:
            KeyError: Nothing has.
        """
        node: Any = self.top
        for name in path.split("/") if path else ():
            node = node.volatile[name]
        return node

    def directory(self, path: str) -> Directory:
        """Return the directory of this path."""
        found = self.find(path)
        assert isinstance(found, Directory), path
        return found

    def place(self, path: str) -> tuple[Directory, str]:
        """Return the directory that holds `path`, and the name in it."""
        parent, _, name = path.rpartition("/")
        return self.directory(parent), name

    def seen(self) -> Tree:
        """Return what processes see, and what a killed one leaves."""
        return _tree(self.top, lambda d: d.volatile, lambda f: f.volatile)

    def after_power_loss(
        self, arrived: Collection[Change], content: Callable[[File], bytes]
    ) -> Tree:
        """Return what is there when the power comes back.

        Args:
            arrived: The pending changes that reached the disk.
            content: What became of a file's bytes.
        """

        def entries(directory: Directory) -> dict[str, File | Directory]:
            found = dict(directory.durable)
            for change in directory.pending:
                if change in arrived:
                    change.make(found)
            return found

        return _tree(self.top, entries, content)

    def pending(self) -> list[Change]:
        """Return all changes of names that are not durable."""
        return [change for directory in self._directories() for change in directory.pending]

    def unsynced(self) -> list[File]:
        """Return the files whose bytes are not durable."""
        return [file for file in self.files.values() if file.volatile != file.durable]

    def _directories(self) -> Iterator[Directory]:
        known: list[Directory] = []
        left = [self.top]
        while left:
            directory = left.pop()
            if directory in known:
                continue
            known.append(directory)
            yield directory
            changed = [change.node for change in directory.pending]
            nodes = [*directory.volatile.values(), *directory.durable.values(), *changed]
            left += [node for node in nodes if isinstance(node, Directory)]


def _tree(
    directory: Directory,
    entries: Callable[[Directory], dict[str, File | Directory]],
    content: Callable[[File], bytes],
) -> Tree:
    return {
        name: _tree(node, entries, content)
        if isinstance(node, Directory)
        else (node.number, content(node))
        for name, node in entries(directory).items()
    }
