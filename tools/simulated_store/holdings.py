"""What a simulated store holds, and what S3 promises of it. Touches nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

SMALLEST_PART = 5 * 1024 * 1024  # bytes, of all parts but the last


class RefusalError(Exception):
    """An answer of the store's that is an error.

    Args:
        status: Of HTTP.
        code: Of S3.
        message: For people.
    """

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message or code


@dataclass(frozen=True)
class StoredObject:
    """An object, in the pieces in which it came: large ones are never joined.

    Attributes:
        pieces: Its bytes.
        tag: Its ETag, with quotes; no other content has the same.
        modified: When it was put, in seconds.
    """

    pieces: tuple[memoryview, ...]
    tag: str
    modified: float

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return sum(map(len, self.pieces))

    def between(self, begin: int, end: int) -> list[memoryview]:
        """Return the bytes from `begin` up to `end`, as views."""
        found = []
        for piece in self.pieces:
            if begin < len(piece) and end > 0:
                found.append(piece[max(0, begin) : end])
            begin -= len(piece)
            end -= len(piece)
        return found


@dataclass
class Upload:
    """An upload in parts that is under way."""

    id: str
    bucket: str
    key: str
    begun: float
    parts: dict[int, StoredObject] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """What must be so for a put to be done.

    Attributes:
        absent: There is no such object.
        tag: The object has this tag; ``None`` for any.
    """

    absent: bool = False
    tag: str | None = None


class Holdings:
    """Buckets with objects, and the uploads under way. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._buckets: dict[str, dict[str, StoredObject]] = {}
        self._uploads: dict[str, Upload] = {}
        self._changes: list[tuple[str, str, StoredObject | None]] = []  # what was there before
        self._numbers = itertools.count(1)

    def buckets(self) -> list[str]:
        """Return the names of all buckets."""
        return sorted(self._buckets)

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket; nothing happens when there is one."""
        with self._lock:
            self._buckets.setdefault(bucket, {})

    def bucket(self, bucket: str) -> dict[str, StoredObject]:
        """Return what is in a bucket.

        Raises:
            RefusalError: There is no such bucket.
        """
        if bucket not in self._buckets:
            raise RefusalError(404, "NoSuchBucket", "The specified bucket does not exist")
        return self._buckets[bucket]

    def clear(self) -> None:
        """Remove all objects and uploads; buckets stay."""
        with self._lock:
            for objects in self._buckets.values():
                objects.clear()
            self._uploads.clear()
            self._changes.clear()

    def made(self, pieces: Iterable[memoryview], now: float, suffix: str = "") -> StoredObject:
        """Return an object of its own tag, which is nowhere yet."""
        number = next(self._numbers)
        return StoredObject(tuple(pieces), f'"{number:032x}{suffix}"', now)

    def put(
        self,
        bucket: str,
        key: str,
        given: StoredObject,
        condition: Condition | None = None,
    ) -> None:
        """Put an object, under a condition or none.

        Raises:
            RefusalError: The condition does not hold, or there is no such bucket.
        """
        with self._lock:
            objects = self.bucket(bucket)
            _check(objects.get(key), condition or Condition())
            self._change(bucket, key, given)

    def get(self, bucket: str, key: str) -> StoredObject:
        """Return an object.

        Raises:
            RefusalError: There is none.
        """
        found = self.bucket(bucket).get(key)
        if found is None:
            raise RefusalError(404, "NoSuchKey", "The specified key does not exist.")
        return found

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        with self._lock:
            if key in self.bucket(bucket):
                self._change(bucket, key, None)

    def listed(self, bucket: str, prefix: str, lag: int = 0) -> list[tuple[str, StoredObject]]:
        """Return the objects whose keys begin so, by key, as they were `lag` changes ago."""
        with self._lock:
            found = dict(self.bucket(bucket))
            for where, key, before in reversed(self._changes[-lag:] if lag else []):
                if where == bucket and before is None:
                    found.pop(key, None)
                elif where == bucket and before is not None:
                    found[key] = before
        return sorted((k, o) for k, o in found.items() if k.startswith(prefix))

    def begin_upload(self, bucket: str, key: str, now: float) -> Upload:
        """Begin an upload in parts."""
        with self._lock:
            self.bucket(bucket)
            upload = Upload(f"upload-{next(self._numbers)}", bucket, key, now)
            self._uploads[upload.id] = upload
        return upload

    def upload(self, upload_id: str) -> Upload:
        """Return an upload that is under way.

        Raises:
            RefusalError: It is not, or not any more.
        """
        found = self._uploads.get(upload_id)
        if found is None:
            raise RefusalError(404, "NoSuchUpload", "The specified upload does not exist.")
        return found

    def uploads(self, bucket: str, prefix: str = "") -> list[Upload]:
        """Return the uploads into a bucket that are under way, by key and id."""
        with self._lock:
            self.bucket(bucket)
            found = [u for u in self._uploads.values() if u.bucket == bucket]
        return sorted(
            (u for u in found if u.key.startswith(prefix)), key=lambda u: (u.key, len(u.id), u.id)
        )

    def abort(self, upload_id: str) -> None:
        """Give up an upload.

        Raises:
            RefusalError: It is not under way.
        """
        with self._lock:
            self.upload(upload_id)
            del self._uploads[upload_id]

    def complete(
        self, upload_id: str, wanted: Sequence[tuple[int, str]], now: float, condition: Condition
    ) -> StoredObject:
        """Publish an upload.

        Args:
            upload_id: The upload's.
            wanted: Number and tag of each part, in order.
            now: The store's time in seconds.
            condition: Of the object that is replaced.

        Returns:
            The object as it is now there.

        Raises:
            RefusalError: A part is missing, too small or not the one that is meant, or the
                condition does not hold.
        """
        with self._lock:
            upload = self.upload(upload_id)
            parts = list(_parts(upload, wanted))
            if any(part.size < SMALLEST_PART for part in parts[:-1]):
                raise RefusalError(400, "EntityTooSmall", "A part is smaller than 5 MiB.")
            pieces = itertools.chain.from_iterable(part.pieces for part in parts)
            made = self.made(pieces, now, f"-{len(parts)}")
            self.put(upload.bucket, upload.key, made, condition)
            del self._uploads[upload_id]
        return made

    def _change(self, bucket: str, key: str, after: StoredObject | None) -> None:
        objects = self._buckets[bucket]
        self._changes.append((bucket, key, objects.get(key)))
        del self._changes[:-30]  # a listing is never further behind; each keeps its bytes
        if after is None:
            del objects[key]
        else:
            objects[key] = after


def _check(standing: StoredObject | None, condition: Condition) -> None:
    if condition.tag is not None and standing is None:
        raise RefusalError(404, "NoSuchKey", "The specified key does not exist.")
    if (condition.absent and standing is not None) or (
        condition.tag is not None and standing is not None and standing.tag != condition.tag
    ):
        raise RefusalError(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        )


def _parts(upload: Upload, wanted: Sequence[tuple[int, str]]) -> Iterator[StoredObject]:
    if not wanted or [number for number, _ in wanted] != sorted({n for n, _ in wanted}):
        raise RefusalError(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    for number, tag in wanted:
        part = upload.parts.get(number)
        if part is None or part.tag.strip('"') != tag.strip('"'):
            raise RefusalError(
                400, "InvalidPart", "One or more of the specified parts could not be found."
            )
        yield part
