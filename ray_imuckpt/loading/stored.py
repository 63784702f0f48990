"""A committed checkpoint, its parts read when they are asked for, or put where they belong.

`LoadedCheckpoint` serves both ways: looked into part by part, in fresh memory; or restored, when
first everything but the tensors of model and optimizer is read (`LoadedCheckpoint.prepare`), and
then these are read into the memory of the live ones (`fill_model`, `fill_both`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch

from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError, located
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.repository import codec, decoding, paths
from ray_imuckpt.repository.manifest import FileEntry, Manifest
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.storage import NotAFileError, Storage
from ray_imuckpt.storage.names import join

T = TypeVar("T")
_POINTERS = 4  # one after the other; ours leads to the checkpoint itself
Live = Mapping[tensors.TensorKey, torch.Tensor]
"""The key of a stored tensor to the live tensor whose memory takes the bytes."""


class TensorFile(NamedTuple):
    """A file of tensors, if there is one, of which the header was read."""

    entry: FileEntry | None
    header: tensors.Header


class LoadedCheckpoint:
    """A committed checkpoint; each part is read, and verified, when it is first asked for.

    Attributes:
        manifest: Its commit record.
        place: Its own directory, if it was opened as such; else what holds it.
        url: Where it is.
        left_out: What was not restored of it, or by it, when it was put into live objects.
    """

    def __init__(self, manifest: Manifest, place: Storage, url: str, reader: Reader) -> None:
        self.manifest = manifest
        self.place = place
        self.url = url
        self.left_out = LeftOut()
        self._reader = reader

    @property
    def epoch(self) -> int:
        """The epoch at whose end it was made."""
        return self.manifest.epoch

    @property
    def step(self) -> int | None:
        """How many steps the training had made; ``None`` where that was not given."""
        return self.manifest.step

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics given with it."""
        return tree.decode_dict(self.manifest.metrics, {})

    @cached_property
    def _model(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return self._decoded_model(*self._fill_as_saved(self._model_files))

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
        return self._decoded_optimizer(*self._fill_as_saved((self._optimizer_file,)))

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
    def classes(self) -> dict[str, str]:
        """The names of the classes of `objects`, as far as they were saved."""
        return self._state.classes

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """Each rank's own state: ``random``, ``per_rank`` and the ``classes`` of the latter."""
        return self._state.ranks

    # ------------------------------------------------------------------ to be restored

    def prepare(self, *, optimizer: bool) -> None:
        """Read all but the tensors of model and optimizer, in the order every rank must keep.

        Raises:
            CorruptCheckpointError: Something is damaged, missing or cut; nothing was filled.
        """
        self._reader.prefetch()
        _ = self.metrics, self._state, *self._model_files
        if optimizer:
            _ = self._optimizer_file

    @cached_property
    def model_places(self) -> tuple[dict[str, tensors.TensorInfo], dict[str, Any]]:
        """What `fill_model` will return, a `TensorInfo` for each tensor."""
        return self._decoded_model(*(file.header.tensors for file in self._model_files))

    def fill_model(self, live: Live) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The model's tensors, in the memory of `live` where it has one, and its extra state.

        The tensors are contiguous: they are to be loaded into others, whose layout stays.
        """
        return self._decoded_live(*self._fill(self._model_files, live))

    @cached_property
    def optimizer_places(self) -> dict[str, Any] | None:
        """As `optimizer`, a `TensorInfo` for each tensor."""
        return self._decoded_optimizer(self._optimizer_file.header.tensors)

    def fill_both(
        self, live: Live
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any] | None]:
        """As `fill_model`, and the optimizer's state: read together, which is faster."""
        *model, optimizer = self._fill((*self._model_files, self._optimizer_file), live)
        tensors.lay_out(self._optimizer_file.header, optimizer)
        return *self._decoded_live(*model), self._decoded_optimizer(optimizer)

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that required no gradient."""
        return frozenset(self._model_files[1].header.tensors)

    @property
    def has_optimizer(self) -> bool:
        """Whether it holds the state of the optimizer."""
        return self._state.optimizer is not None

    @property
    def model_versions(self) -> dict[str, int] | None:
        """The versions of the model's modules, as `ModelState.versions`; ``None`` if not saved."""
        return decoding.decode_versions(self._model_files[0].header.metadata)

    # ------------------------------------------------------------------ below

    @cached_property
    def _model_files(self) -> tuple[TensorFile, TensorFile]:
        return self._file(codec.MODEL), self._file(codec.MODEL_FROZEN)

    @cached_property
    def _optimizer_file(self) -> TensorFile:
        return self._file(codec.OPTIMIZER)

    def _file(self, part: str) -> TensorFile:
        entry = self.manifest.file(part, "safetensors")
        if entry is None:
            return TensorFile(None, tensors.Header({}, {}))
        with located(self.url, epoch=self.epoch):
            return TensorFile(entry, self._reader.header(entry))

    def _fill(self, files: Sequence[TensorFile], live: Live) -> list[dict[str, torch.Tensor]]:
        """The tensors of `files` by name, in the memory of `live` or new ones on the host."""
        with located(self.url, epoch=self.epoch):
            found = [tensors.room(file.header, live) for file in files]
            pairs = zip(files, found, strict=True)
            self._reader.fill([(f.entry, tensors.row(f.header, t)) for f, t in pairs if f.entry])
        return found

    def _fill_as_saved(self, files: Sequence[TensorFile]) -> list[dict[str, torch.Tensor]]:
        """The tensors of `files` by name, new ones, laid out in memory as they were."""
        found = self._fill(files, {})
        return [tensors.lay_out(f.header, t) for f, t in zip(files, found, strict=True)]

    def _decoded_live(
        self, found: dict[str, torch.Tensor], frozen: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors.lay_out(self._model_files[0].header, found, but=self.model_places[0])
        return self._decoded_model(found, frozen)

    def _decoded_model(
        self, found: Mapping[str, T], frozen: Mapping[str, T]
    ) -> tuple[dict[str, T], dict[str, Any]]:
        mine, extra = decoding.decode_model(found, self._model_files[0].header.metadata)
        return {**mine, **frozen}, extra

    def _decoded_optimizer(self, found: Mapping[str, Any]) -> dict[str, Any] | None:
        return decoding.decode_optimizer(self._state.optimizer, found, self.url)

    @cached_property
    def _state(self) -> decoding.DecodedState:
        entries = self.manifest.files_of(codec.STATE, "json")
        if not entries:
            raise CorruptCheckpointError("The checkpoint has no state part.", url=self.url)
        with located(self.url, epoch=self.epoch):
            texts = [self._reader.whole(entry) for entry in entries]
        (found,) = self._fill_as_saved((self._file(codec.STATE),))
        return decoding.decode_state(texts, found, self.manifest.world_size, self.url)

    def __repr__(self) -> str:
        """The epoch and where it is."""
        return f"LoadedCheckpoint(epoch={self.epoch}, url={self.url!r})"


def open_checkpoint(
    storage: Storage, directory: str, manifest: Manifest, gang: Gang | None = None
) -> LoadedCheckpoint:
    """The checkpoint of `manifest`.

    Args:
        storage: What holds it; used on rank 0 only.
        directory: Its directory in `storage`; ``""`` when the storage is that directory.
        manifest: Its commit record.
        gang: The gang that opens it together; every part must then be asked for on every rank,
            in the same order. ``None``: this process alone.
    """
    reader = Reader(storage, directory, manifest, gang or Gang())
    return LoadedCheckpoint(manifest, storage, join(storage.url, directory), reader)


def open_directory(
    place: Storage, options: dict[str, Any] | None = None, own: Storage | None = None
) -> LoadedCheckpoint:
    """Return the checkpoint whose directory is `place`, or that a pointer in it names.

    Args:
        place: A directory.
        options: For the fsspec file system of the directory that a pointer names.
        own: The reader's own directory, to whose file system a pointer may lead.

    Raises:
        CheckpointNotFoundError: There is none.
        CorruptCheckpointError: Its manifest, or the pointer, is damaged.
    """
    for _ in range(_POINTERS):
        url = join(place.url, paths.MANIFEST)
        try:
            data = place.get(paths.MANIFEST)
        except (FileNotFoundError, NotADirectoryError) as error:
            target = pointed_at(place, options, own)
            if target is None:
                raise CheckpointNotFoundError(
                    "There is no committed checkpoint here: the directory holds no manifest.",
                    url=place.url,
                    hint="Give the path of a directory checkpoint=<epoch>.",
                ) from error
            place = target
        except NotAFileError as error:
            raise CorruptCheckpointError(f"The manifest {error}.", url=url) from error
        else:
            epoch = paths.parse_checkpoint_name(posixpath.basename(place.url.rstrip("/")))
            return open_checkpoint(place, "", Manifest.from_bytes(data, url, epoch))
    raise CorruptCheckpointError(
        "Pointers to a checkpoint lead to each other.",
        url=place.url,
        hint="Give the path of the directory checkpoint=<epoch> itself.",
    )
