"""The manifest: what a committed checkpoint consists of. Values and bytes, no I/O.

The rules that a reader applies, in this order (`Manifest.from_bytes`):

1. The bytes are one JSON object, of numbers that are finite and keys that are there once, and it is
   not larger than any that is written. Otherwise: corrupt.
2. ``format`` is an integer; larger than `FORMAT` means a newer writer. Unsupported.
3. ``checksum`` is the XXH3-128 of the canonical JSON (sorted keys, no spaces, ASCII) of the object
   without ``checksum``. Otherwise: corrupt.
4. Every field is there with its type and in its bounds, at every level; further fields are passed
   over. Every file name is a plain data file name: no separator, no ``..``, nothing outside the
   checkpoint's directory. Otherwise: corrupt.

`docs/manifest.schema.json` says the fourth rule to programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ray_imuckpt.encoding import chunks, strictjson
from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from ray_imuckpt.repository import paths
from ray_imuckpt.storage.names import MAX_RECORD

FORMAT = 1
_MAX_OBJECTS = 200_000  # and lists: one a file, an ancestor, an abandoned epoch
_MAX_VALUES = 2_000_000
_SMALL = 1024 * 1024  # whatever it holds, it takes few times as much memory
_MAX_DEPTH = 64  # of the metrics
USE_ANOTHER = 'Use another epoch; start("last") falls back to the newest sound one by itself.'

Count = Annotated[int, Meta(ge=0, le=2**53)]  # what every reader of JSON has exactly
Checksum = Annotated[str, Meta(min_length=32, max_length=32)]
Text = Annotated[str, Meta(max_length=1000)]


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

    part: Text
    name: Text
    size: Count
    chunk_size: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)]
    checksums: tuple[Checksum, ...]
    header_size: Count = 0
    header_checksum: Annotated[str, Meta(max_length=32)] = ""

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

    epoch: Count
    run_id: Text
    save_id: Text


@dataclass(frozen=True)
class Ancestor:
    """A run whose checkpoints up to and including `epoch` are part of a checkpoint's history."""

    run_id: Text
    epoch: Count


@dataclass(frozen=True)
class Manifest:
    """The commit record of one checkpoint.

    Attributes:
        epoch: The epoch at whose end it was made.
        run_id: The run that made it (a restarted gang is the same run).
        save_id: The save that made it; its data files carry this id.
        parent: The checkpoint that training had come from: the run's previous one, or the one the
            run was resumed from; ``None`` for the first of a run that began from scratch.
        ancestors: The runs before this one in its history, oldest first.
        world_size: How many ranks the gang had.
        created: UTC time, ISO 8601.
        versions: Versions of the packages that wrote it.
        metrics: The numbers given to `checkpoint`, as a tree (`ray_imuckpt.encoding.tree`).
        files: Every data file.
        branch: The number of the branch that it is of (`repository.lineage`); 0 where branches
            were not counted.
    """

    epoch: Count
    run_id: Text
    save_id: Text
    parent: Origin | None
    ancestors: tuple[Ancestor, ...]
    world_size: Annotated[int, Meta(ge=1, le=2**31)]
    created: Text
    versions: Mapping[str, Text]
    metrics: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    branch: Count = 0

    @property
    def origin(self) -> Origin:
        """This checkpoint, as the parent of the next."""
        return Origin(self.epoch, self.run_id, self.save_id)

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
            manifest = _checked(msgspec.convert(fields, Manifest))
        except ValueError as error:  # msgspec's own among them
            raise CorruptCheckpointError(
                f"The manifest has a wrong or missing field: {error}.",
                url=url,
                epoch=epoch,
                hint=USE_ANOTHER,
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
        record = _loads(data)
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        version = record["format"]
        if type(version) is not int or version < 1:
            raise TypeError("format is not a positive integer")
        stated = record.pop("checksum", None)
        found = _record_checksum(record) if version <= FORMAT else None
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
    if stated != found:
        raise CorruptCheckpointError(
            "The record was altered: its checksum does not match.",
            url=url,
            hint=hint,
        )
    return record


def stated_maker(data: bytes) -> tuple[str | None, str | None]:
    """The save and the run that a manifest of a newer format names, unchecked, if it does."""
    try:
        record = _loads(data)
    except ValueError:
        return None, None
    if not isinstance(record, dict):
        return None, None
    save, run = record.get("save_id"), record.get("run_id")
    return save if isinstance(save, str) else None, run if isinstance(run, str) else None


def _loads(data: bytes) -> Any:
    """The value of a record, if it is not larger than one of ours can be."""
    if len(data) > _SMALL and (
        len(data) > MAX_RECORD
        or data.count(b"{") + data.count(b"[") > _MAX_OBJECTS
        or data.count(b",") > _MAX_VALUES
    ):
        raise ValueError(f"it has {len(data)} bytes, and more values than any record")
    return strictjson.loads(data)


def _record_checksum(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return chunks.checksum([canonical.encode("ascii")])


def _checked(manifest: Manifest) -> Manifest:
    """The manifest, if it follows the rules that no type says."""
    kinds = set()
    for entry in manifest.files:
        if not paths.is_data_file_name(entry.name):
            raise ValueError(f"{entry.name!r} is not the name of a data file of this directory")
        if entry.header_size > entry.size:
            raise ValueError(f"{entry.name}: impossible header")
        sums = len(entry.checksums)
        if sums != -(-entry.size // entry.chunk_size):
            raise ValueError(f"{entry.name}: {sums} checksums for {entry.size} bytes")
        kinds.add((entry.part, entry.name.rsplit(".", 1)[1]))
    if not len(kinds) == len({entry.name for entry in manifest.files}) == len(manifest.files):
        raise ValueError("a file is named twice, or a part has two of one kind")
    if _is_deeper(manifest.metrics, _MAX_DEPTH):
        raise ValueError("metrics are nested too deeply")
    return manifest


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)
