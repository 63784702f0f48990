"""The protocol of whatever moves the bytes of a remote storage. Values, touches nothing.

Paths are full ones, without a scheme: ``bucket/directory/name`` in an object store.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_imuckpt.storage.engines.patience import Patience
from ray_imuckpt.storage.entries import Upload

MIB = 1024 * 1024


class Kind(enum.Enum):
    """The moment at which a reader sees a file that is being written."""

    OBJECTS = "an object store: a file appears, and is replaced, as a whole"
    FILES = "like a disk: bytes appear as they are written, and a rename replaces a file"
    UNKNOWN = "not known here, with neither a rename nor a copy of its own"


class Fault(enum.Enum):
    """A failure by what may come of another try."""

    PASSING = "the store, or the way to it, had a hiccup"
    LOST = "what was sent is gone: the whole may pass when it is begun anew"
    EXPIRED = "the credentials are no longer valid: new ones may be had"
    LASTING = "the answer would be the same"


class RefusedError(FileExistsError):
    """A put under a condition that is not met: another file is there, or none."""


@dataclass(frozen=True)
class Absent:
    """The condition of a put that no file is there."""


@dataclass(frozen=True)
class Tagged:
    """The condition of a put that the file that is there has this tag.

    Attributes:
        tag: As `Engine.tag` returned it.
    """

    tag: str


Condition = Absent | Tagged


@dataclass(frozen=True)
class Listed:
    """A file or directory in a listing.

    Attributes:
        path: Its full path.
        size: In bytes; 0 of a directory.
        modified: When it was last written, in seconds of the store's own clock; ``None`` where the
            store does not tell.
        is_file: Whether it is a file: neither a directory nor a link.
        is_directory: Whether it is a directory, not a link to one.
        is_link: Whether it is a symbolic link.
    """

    path: str
    size: int = 0
    modified: float | None = None
    is_file: bool = True
    is_directory: bool = False
    is_link: bool = False


@dataclass(frozen=True)
class Source:
    """The bytes of a file that is to be uploaded, in parts.

    Attributes:
        size: Bytes in all.
        part_size: Bytes of a part; the last may be shorter.
        parts: Begins to yield the parts, each as views of the memory where the bytes lie; what
            they belong to is hashed on the way. May be called again, where an upload is repeated.
    """

    size: int
    part_size: int
    parts: Callable[[], Iterable[list[memoryview]]]


class Engine(Protocol):
    """Moves bytes to and from one kind of remote storage.

    Every method does one thing, may be called on any thread, and raises ``OSError``:
    ``FileNotFoundError`` and ``PermissionError`` where they apply. None does again what failed,
    but for the parts of an upload: `ray_imuckpt.storage.engines.persistent` does.

    Attributes:
        name: What moves the bytes, for the log.
        kind: When its files become visible.
        readers: How many reads at once serve it best.
        writers: How many files at once serve it best.
        smallest_part: Bytes of the smallest part of an upload, but for the last.
        largest_part: Bytes of the largest part that it is best served with.
        largest_read: Bytes of the largest range that is read at once.
        makes_new: Whether it heeds `Absent`.
        replaces: Whether a rename over a file leaves no moment without one, as far as is known.
        identity: Equal for engines that reach the same files.
    """

    name: str
    kind: Kind
    readers: int
    writers: int
    smallest_part: int
    largest_part: int
    largest_read: int
    makes_new: bool
    replaces: bool

    @property
    def identity(self) -> Hashable:
        """Return what is equal for engines that reach the same files."""

    def url(self, path: str) -> str:
        """Return the URL of a path."""

    def fault(self, error: BaseException) -> Fault:
        """Return whether it may help to do again what raised `error`."""

    def renew(self) -> None:
        """Look up the credentials anew, where they were not given."""

    def get(self, path: str, limit: int) -> bytes:
        """Return the first `limit` bytes of a file in one request, all where it has fewer."""

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` with a file's bytes from `offset` on; ``EOFError`` past its end."""

    def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        """Create or replace a file by one request.

        Raises:
            RefusedError: The condition is not met.
        """

    def upload(self, path: str, source: Source, patience: Patience) -> None:
        """Create or replace a file in parts, which are sent side by side.

        One that is no larger than a part is sent by one request.
        An upload that fails is given up: nothing of it stays, if the store can be reached.

        Args:
            path: The file's.
            source: Its bytes.
            patience: For each part, so that a file is not begun anew for one of them.

        Raises:
            ExhaustedError: A part failed for a reason that passes, as often as it was tried.
        """

    def tag(self, path: str) -> str | None:
        """Return what names a file's content, ``None`` where no put can depend on it."""

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""

    def modified(self, path: str) -> float | None:
        """Return when a file was last written, by the store's own clock."""

    def copy(self, source: str, target: str) -> bool:
        """Let the store copy a file; return False if it cannot."""

    def rename(self, source: str, target: str) -> None:
        """Give a file the name of another, which it replaces."""

    def make_directories(self, path: str) -> None:
        """Make a directory where the storage knows directories."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def entries(self, path: str) -> list[Listed]:
        """Return what is in a directory.

        Raises:
            FileNotFoundError: There is no such directory; a file is none.
        """

    def below(self, path: str, levels: int = 2) -> list[Listed]:
        """Return a directory's files, those of its directories, perhaps deeper ones.

        As few requests as the store allows.

        Args:
            path: The directory's.
            levels: How deep to look; see `Storage.entries`.

        Raises:
            FileNotFoundError: There is no such directory, or no such bucket.
            OSError: The listing failed, also when that of a single directory did.
        """

    def names_below(self, path: str) -> list[str]:
        """Return the paths alone of what `below` returns, of two levels; errors as there."""

    def is_link(self, path: str) -> bool:
        """Return whether a name is that of a symbolic link."""

    def uploads(self, path: str) -> list[Upload]:
        """Return the uploads below a directory that were begun and not ended, if that is told."""

    def abort(self, path: str, upload: Upload) -> None:
        """Give up an upload; nothing happens when it has ended."""

    def to_arrow(self, path: str) -> tuple[Any, str]:
        """Return a pyarrow file system and the path of a directory on it."""
