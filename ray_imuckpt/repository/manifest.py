"""The manifest: what a committed checkpoint consists of. Values and bytes, no I/O.

The rules that a reader applies, in this order (`Manifest.from_bytes`):

1. The bytes are one JSON object, of numbers that are finite and keys that are there once, and it is
   not larger than any that is written. Otherwise: corrupt.
2. ``format`` is an integer; larger than `records.FORMAT` means a newer writer. Unsupported.
3. ``checksum`` is the XXH3-128 of the canonical JSON (sorted keys, no spaces, ASCII) of the object
   without ``checksum``. Otherwise: corrupt.
4. Every field is there with its type and in its bounds, at every level; further fields are passed
   over. Every file has the name that its part, the save, and its rank give it, so that none lies
   outside the checkpoint directory; no rank has two files of one part and kind. Otherwise:
   corrupt.

`docs/manifest.schema.json` says the fourth rule to programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.repository import paths, records

_MAX_DEPTH = 64  # of the metrics
USE_ANOTHER = 'Use another epoch; start("last") falls back to the newest sound one by itself.'

Count = Annotated[int, Meta(ge=0, le=2**53)]  # what every reader of JSON has exactly
Checksum = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}(?!\n)$")]
Text = Annotated[str, Meta(max_length=1000)]
Rank = Annotated[int, Meta(ge=0, lt=2**31)]


@dataclass(frozen=True)
class FileEntry:
    """One data file.

    Attributes:
        part: What it holds: ``model``, ``model_frozen``, ``optimizer`` or ``state``.
        rank: Which rank of the gang wrote it.
        name: Its name in the checkpoint directory.
        size: Bytes.
        chunk_size: Bytes covered by each checksum (the last may cover fewer).
        checksums: XXH3-128 of each chunk, in order.
        header_size: Bytes before the first tensor; 0 where the file has none.
        header_checksum: XXH3-128 of these; ``""`` where there are none.
    """

    part: Text
    rank: Rank
    name: Text
    size: Count
    chunk_size: Annotated[int, Meta(ge=1, le=64 * 1024 * 1024)]
    checksums: tuple[Checksum, ...]
    header_size: Count
    header_checksum: Annotated[str, Meta(pattern=r"^([0-9a-f]{32}(?!\n))?$")]

    @property
    def suffix(self) -> str:
        """Return what the file is: ``safetensors`` or ``json``."""
        return self.name.rpartition(".")[2]

    @property
    def header(self) -> FileEntry | None:
        """Return the header as if it were a file; ``None`` of a file without tensors."""
        if not self.header_size:
            return None
        sums = (self.header_checksum,)
        return replace(self, size=self.header_size, chunk_size=self.header_size, checksums=sums)


@dataclass(frozen=True)
class Origin:
    """The checkpoint that another one was continued from."""

    epoch: Count
    run_id: Text
    save_id: Text


@dataclass(frozen=True)
class Ancestor:
    """A run whose checkpoints up to and including `epoch` are part of a checkpoint's history."""

    run_id: Text
    epoch: Count


@prepared
@dataclass(frozen=True)
class Manifest:
    """The commit record of one checkpoint.

    Attributes:
        epoch: The epoch at whose end it was made.
        step: The step of the training that it was made at, where the user gave one.
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
    step: Count | None
    run_id: Text
    save_id: Text
    parent: Origin | None
    ancestors: tuple[Ancestor, ...]
    world_size: Annotated[int, Meta(ge=1, le=2**31)]
    created: Text
    versions: Mapping[str, Text]
    metrics: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    branch: Count

    @property
    def origin(self) -> Origin:
        """Return this checkpoint as the parent of the next."""
        return Origin(self.epoch, self.run_id, self.save_id)

    def files_of(self, part: str, suffix: str) -> list[FileEntry]:
        """Return the files of `part` that end in `suffix`, in the order of the ranks."""
        chosen = [e for e in self.files if e.part == part and e.suffix == suffix]
        return sorted(chosen, key=lambda entry: entry.rank)

    def file(self, part: str, suffix: str, rank: int = 0) -> FileEntry | None:
        """Return the file of `part` that ends in `suffix` and that `rank` wrote, if it did."""
        return next((e for e in self.files_of(part, suffix) if e.rank == rank), None)

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored."""
        return records.seal({"format": records.FORMAT, **asdict(self)})

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
        fields = records.unseal(data, url, USE_ANOTHER)
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


class Stored(NamedTuple):
    """A manifest, and its very bytes, by which a deletion knows it again."""

    manifest: Manifest
    data: bytes

    def light(self) -> Stored:
        """Return the same without its files, to be kept: of large checkpoints these are many."""
        return Stored(replace(self.manifest, files=()), self.data)


def stated_maker(data: bytes) -> tuple[str | None, str | None]:
    """Return the save and the run that a manifest of a newer format names, unchecked."""
    try:
        record = records.loads(data)
    except ValueError:
        return None, None
    if not isinstance(record, dict):
        return None, None
    save, run = record.get("save_id"), record.get("run_id")
    return save if isinstance(save, str) else None, run if isinstance(run, str) else None


def _checked(manifest: Manifest) -> Manifest:
    """Return the manifest, if it follows the rules that no type says."""
    for entry in manifest.files:
        _check_file(entry, manifest)
    kinds = {(entry.part, entry.rank, entry.suffix) for entry in manifest.files}
    if len(kinds) != len(manifest.files):
        raise ValueError("a rank has two files of one part and kind")
    if _is_deeper(manifest.metrics, _MAX_DEPTH):
        raise ValueError("metrics are nested too deeply")
    return manifest


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)


def _check_file(entry: FileEntry, manifest: Manifest) -> None:
    named = paths.parse_data_file_name(entry.name)
    if named is None:
        raise ValueError(f"{entry.name!r} is not the name of a data file of this directory")
    if (named.part, named.save_id) != (entry.part, manifest.save_id):
        raise ValueError(f"{entry.name} is not of part {entry.part!r}, or of another save")
    if entry.rank >= manifest.world_size or named.rank not in (None, entry.rank):
        raise ValueError(f"{entry.name} is not rank {entry.rank}'s of {manifest.world_size}")
    least = 10 if named.suffix == "safetensors" else 0  # the length, and "{}"
    if not least <= entry.header_size <= (entry.size if least else 0):
        raise ValueError(f"{entry.name}: impossible header")
    if bool(entry.header_checksum) != bool(entry.header_size):
        raise ValueError(f"{entry.name}: a header without a checksum, or the reverse")
    sums = len(entry.checksums)
    if sums != -(-entry.size // entry.chunk_size):
        raise ValueError(f"{entry.name}: {sums} checksums for {entry.size} bytes")
