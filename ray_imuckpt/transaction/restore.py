"""The story of a restore, from a manifest to live objects.

Rank 0 reads storage, once; the other ranks receive its bytes. Nothing live is changed before every
byte that will be used has been verified and every rank has found that everything fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from ray_imuckpt import chunks, codec, layout, parallel, tree
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.manifest import USE_ANOTHER, FileEntry, Manifest
from ray_imuckpt.ranks import Ranks, SoloRanks, together
from ray_imuckpt.storage import Storage

Fetch = Callable[[FileEntry], torch.Tensor]
"""Gives the verified bytes of a data file as a one-dimensional uint8 CPU tensor."""


class LoadedCheckpoint:
    """A committed checkpoint; each part is read, and verified, when it is first asked for.

    Attributes:
        manifest: Its commit record.
        url: Where it is.
    """

    def __init__(self, manifest: Manifest, url: str, fetch: Fetch) -> None:
        self.manifest = manifest
        self.url = url
        self._fetch = fetch

    @property
    def epoch(self) -> int:
        """The epoch at whose end it was made."""
        return self.manifest.epoch

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics given with it."""
        metrics: dict[str, Any] = tree.decode(dict(self.manifest.metrics), {})
        return metrics

    @cached_property
    def _model(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        found, metadata = self._tensors(codec.MODEL)
        found, extra = codec.decode_model(found, metadata)
        return {**found, **self._tensors(codec.MODEL_FROZEN)[0]}, extra

    @property
    def model(self) -> dict[str, torch.Tensor]:
        """The model's tensors (CPU) by name in the bare module, tied ones under each name."""
        return self._model[0]

    @property
    def model_extra(self) -> dict[str, Any]:
        """What modules gave as extra state (``get_extra_state``), by name."""
        return self._model[1]

    @cached_property
    def optimizer(self) -> dict[str, Any] | None:
        """``class``, ``param_groups``, ``state`` keyed by parameter name; ``None`` if not saved."""
        data = self._state.optimizer
        if data is None:
            return None
        optimizer: dict[str, Any] = tree.decode(data, self._tensors(codec.OPTIMIZER)[0])
        return optimizer

    @property
    def log(self) -> Any:
        """The training log."""
        return self._state.log

    @property
    def other(self) -> dict[str, Any]:
        """Everything passed by keyword; objects as their ``state_dict``."""
        return self._state.other

    @property
    def objects(self) -> frozenset[str]:
        """The names in `other` that hold states of objects."""
        return self._state.objects

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """Each rank's own state: ``random`` and ``per_rank``."""
        return self._state.ranks

    @cached_property
    def _state(self) -> codec.DecodedState:
        found, _ = self._tensors(codec.STATE)
        entry = self.manifest.file(codec.STATE, "json")
        if entry is None:
            raise CorruptCheckpointError("The checkpoint has no state part.", url=self.url)
        return codec.decode_state(self._fetch(entry).numpy().tobytes(), found, self.url)

    def _tensors(self, part: str) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
        entry = self.manifest.file(part, "safetensors")
        if entry is None:
            return {}, {}
        return codec.decode_tensors(self._fetch(entry), f"{self.url}/{entry.name}")

    def __repr__(self) -> str:
        """The epoch and where it is."""
        return f"LoadedCheckpoint(epoch={self.epoch}, url={self.url!r})"


def open_checkpoint(
    storage: Storage, directory: str, manifest: Manifest, ranks: Ranks | None = None
) -> LoadedCheckpoint:
    """The checkpoint of `manifest`.

    Args:
        storage: What holds it; used on rank 0 only.
        directory: Its directory in `storage`; ``""`` when the storage is that directory.
        manifest: Its commit record.
        ranks: The gang that opens it together; every part must then be asked for on every rank,
            in the same order. ``None``: this process alone.
    """
    gang = ranks or SoloRanks()

    def fetch(entry: FileEntry) -> torch.Tensor:
        def read() -> torch.Tensor:
            if gang.rank == 0:
                return _read_verified(storage, directory, manifest.epoch, entry)
            return torch.empty(entry.size, dtype=torch.uint8)

        buffer = together(gang, read)
        gang.broadcast_into(buffer)
        return buffer

    return LoadedCheckpoint(manifest, layout.join(storage.url, directory), fetch)


def verify(storage: Storage, directory: str, manifest: Manifest) -> None:
    """Read every byte of a checkpoint and check it, in memory of one chunk.

    Raises:
        CorruptCheckpointError: It names the file and the bytes.
    """
    for entry in manifest.files:
        check = _checker(storage, directory, manifest.epoch, entry)
        buffer = memoryview(bytearray(min(entry.chunk_size, entry.size)))
        for index, (begin, end) in enumerate(chunks.ranges(entry.size, entry.chunk_size)):
            check(index, buffer[: end - begin])


def _read_verified(storage: Storage, directory: str, epoch: int, entry: FileEntry) -> torch.Tensor:
    check = _checker(storage, directory, epoch, entry)  # the size first: then memory for it
    buffer = torch.empty(entry.size, dtype=torch.uint8)
    view = buffer.numpy().data
    spans = chunks.ranges(entry.size, entry.chunk_size)

    def read(index: int) -> None:
        begin, end = spans[index]
        check(index, view[begin:end])

    parallel.each(read, len(spans))
    return buffer


def _checker(
    storage: Storage, directory: str, epoch: int, entry: FileEntry
) -> Callable[[int, memoryview], None]:
    """Fills a buffer with chunk `index` of a file, or raises; any thread."""
    path = f"{directory}/{entry.name}".lstrip("/")

    def corrupt(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"A data file of a committed checkpoint is damaged: {what}.",
            url=layout.join(storage.url, path),
            epoch=epoch,
            hint=USE_ANOTHER,
        )

    def check(index: int, buffer: memoryview) -> None:
        begin = index * entry.chunk_size
        try:
            storage.read_into(path, begin, buffer)
        except (FileNotFoundError, EOFError) as error:
            raise corrupt(f"it is missing or cut ({error})") from error
        if chunks.checksum([buffer]) != entry.checksums[index]:
            raise corrupt(f"bytes {begin} to {begin + len(buffer)} were altered")

    try:
        size = storage.size(path)
    except FileNotFoundError as error:
        raise corrupt("it is missing") from error
    if size != entry.size:
        raise corrupt(f"it has {size} bytes instead of {entry.size}")
    return check


def read_all(checkpoint: LoadedCheckpoint, *, optimizer: bool) -> None:
    """Read and verify the parts that a restore needs, in the order every rank must keep."""
    _ = checkpoint.model
    if optimizer:
        _ = checkpoint.optimizer
    _ = checkpoint.log
