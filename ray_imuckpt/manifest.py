"""The manifest: what a committed checkpoint consists of. Values and bytes, no I/O.

The rules that a reader applies, in this order (`Manifest.from_bytes`):

1. The bytes are one JSON object. Otherwise: corrupt.
2. ``format`` is an integer; larger than `FORMAT` means a newer writer. Unsupported.
3. ``checksum`` is the XXH3-128 of the canonical JSON (sorted keys, no spaces, ASCII) of the object
   without ``checksum``. Otherwise: corrupt.
4. Every field is there with its type, and every file name is a plain data file name: no separator,
   no ``..``, nothing outside the checkpoint's directory. Otherwise: corrupt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray_imuckpt import chunks, layout
from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedFormatError

FORMAT = 1
USE_ANOTHER = 'Use another epoch; start("last") falls back to the newest sound one by itself.'


@dataclass(frozen=True)
class FileEntry:
    """One data file.

    Attributes:
        part: What it holds: ``model``, ``model_frozen``, ``optimizer`` or ``state``.
        name: Its name in the checkpoint's directory.
        size: Bytes.
        chunk_size: Bytes covered by each checksum (the last may cover fewer).
        checksums: XXH3-128 of each chunk, in order.
        header_size: Bytes before the first tensor; 0 where there are none, or it was not noted.
        header_checksum: XXH3-128 of these.
    """

    part: str
    name: str
    size: int
    chunk_size: int
    checksums: tuple[str, ...]
    header_size: int = 0
    header_checksum: str = ""

    @property
    def header(self) -> FileEntry | None:
        """The file's header as if it were a file, where it can be checked by itself."""
        if not self.header_size:
            return None
        sums = (self.header_checksum,)
        return replace(self, size=self.header_size, chunk_size=self.header_size, checksums=sums)


@dataclass(frozen=True)
class Origin:
    """Which checkpoint another one was continued from."""

    epoch: int
    run_id: str
    attempt_id: str


@dataclass(frozen=True)
class Ancestor:
    """A run whose checkpoints up to and including `epoch` are part of a checkpoint's history."""

    run_id: str
    epoch: int


@dataclass(frozen=True)
class Manifest:
    """The commit record of one checkpoint.

    Attributes:
        epoch: The epoch at whose end it was made.
        run_id: The run that made it (a restarted gang is the same run).
        attempt_id: The save that made it; its data files carry this id.
        parent: The checkpoint that training had come from: the run's previous one, or the one the
            run was resumed from; ``None`` for the first of a run that began from scratch.
        ancestors: The runs before this one in its history, oldest first.
        world_size: How many ranks the gang had.
        created: UTC time, ISO 8601.
        versions: Versions of the packages that wrote it.
        metrics: The numbers given to `checkpoint`, as a tree (`ray_imuckpt.tree`).
        files: Every data file.
    """

    epoch: int
    run_id: str
    attempt_id: str
    parent: Origin | None
    ancestors: tuple[Ancestor, ...]
    world_size: int
    created: str
    versions: Mapping[str, str]
    metrics: Mapping[str, Any]
    files: tuple[FileEntry, ...] = field(default=())

    @property
    def origin(self) -> Origin:
        """This checkpoint, as the parent of the next."""
        return Origin(self.epoch, self.run_id, self.attempt_id)

    def file(self, part: str, suffix: str) -> FileEntry | None:
        """The file of `part` that ends in `suffix`, if there is one."""
        for entry in self.files:
            if entry.part == part and entry.name.endswith("." + suffix):
                return entry
        return None

    def to_bytes(self) -> bytes:
        """The manifest as it is stored."""
        return seal({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes, url: str, epoch: int | None = None) -> Manifest:
        """Parse and check a stored manifest.

        Args:
            data: The file's bytes.
            url: Where they came from, for the error.
            epoch: The epoch of the directory that held it, which the manifest must confirm.

        Raises:
            UnsupportedFormatError: It was written by a newer release.
            CorruptCheckpointError: It is cut, altered, or names files outside its directory.
        """
        fields = unseal(data, url, USE_ANOTHER)
        try:
            manifest = _parse(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpointError(
                f"The manifest has a wrong or missing field: {error!r}.", url=url, epoch=epoch
            ) from error
        if epoch is not None and manifest.epoch != epoch:
            raise CorruptCheckpointError(
                f"The manifest is of epoch {manifest.epoch}, its directory is not.",
                url=url,
                epoch=epoch,
                hint="The directory was renamed or copied over; give it back its own name.",
            )
        return manifest


def seal(record: Mapping[str, Any]) -> bytes:
    """A JSON record with the checksum of itself inside, one field a line for human readers."""
    body = {**record, "checksum": _record_checksum(record)}
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}"
        for key, value in body.items()
    )
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def unseal(data: bytes, url: str, hint: str) -> dict[str, Any]:
    """The record that `seal` wrote.

    Args:
        data: The file's bytes.
        url: Where they came from, for the error.
        hint: What to do when they are damaged.

    Raises:
        UnsupportedFormatError: It was written by a newer release.
        CorruptCheckpointError: It is not what was written.
    """
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        version = record["format"]
        if type(version) is not int:
            raise TypeError("format is not an integer")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"The record is empty, cut or not ours ({error}).",
            url=url,
            hint=hint,
        ) from error
    if version > FORMAT:
        raise UnsupportedFormatError(
            f"It has format {version}; this release reads formats up to {FORMAT}.",
            url=url,
            hint="Upgrade ray_imuckpt on this machine.",
        )
    stated = record.pop("checksum", None)
    if stated != _record_checksum(record):
        raise CorruptCheckpointError(
            "The record was altered: its checksum does not match.",
            url=url,
            hint=hint,
        )
    return record


def stated_maker(data: bytes) -> tuple[str | None, str | None]:
    """The attempt and the run that a manifest of a newer format names, unchecked, if it does."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(record, dict):
        return None, None
    attempt, run = record.get("attempt_id"), record.get("run_id")
    return attempt if isinstance(attempt, str) else None, run if isinstance(run, str) else None


def _record_checksum(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return chunks.checksum([canonical.encode("ascii")])


def _parse(fields: dict[str, Any]) -> Manifest:
    parent = fields["parent"]
    manifest = Manifest(
        epoch=_typed(fields, "epoch", int),
        run_id=_typed(fields, "run_id", str),
        attempt_id=_typed(fields, "attempt_id", str),
        parent=None if parent is None else Origin(**parent),
        ancestors=tuple(Ancestor(**entry) for entry in _typed(fields, "ancestors", list)),
        world_size=_typed(fields, "world_size", int),
        created=_typed(fields, "created", str),
        versions=_typed(fields, "versions", dict),
        metrics=_typed(fields, "metrics", dict),
        files=tuple(_parse_file(entry) for entry in _typed(fields, "files", list)),
    )
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names):
        raise ValueError("a file is named twice")
    return manifest


def _parse_file(fields: dict[str, Any]) -> FileEntry:
    entry = FileEntry(
        part=_typed(fields, "part", str),
        name=_typed(fields, "name", str),
        size=_typed(fields, "size", int),
        chunk_size=_typed(fields, "chunk_size", int),
        checksums=tuple(_typed(fields, "checksums", list)),
        **{name: fields[name] for name in ("header_size", "header_checksum") if name in fields},
    )
    if not layout.is_data_file_name(entry.name):
        raise ValueError(f"{entry.name!r} is not the name of a data file of this directory")
    if type(entry.header_size) is not int or not 0 <= entry.header_size <= entry.size:
        raise ValueError(f"{entry.name}: impossible header")
    if entry.size < 0 or entry.chunk_size <= 0:
        raise ValueError(f"{entry.name}: impossible size")
    if len(entry.checksums) != -(-entry.size // entry.chunk_size):
        raise ValueError(f"{entry.name}: {len(entry.checksums)} checksums for {entry.size} bytes")
    return entry


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value
