"""A committed checkpoint, its parts read when they are asked for, or into the memory of others.

`LoadedCheckpoint` serves both ways: looked into part by part, in fresh memory; or restored, when
first everything but the tensors of model and optimizer is read (`LoadedCheckpoint.prepare`), and
then these are read into the memory of the live ones (`LoadedCheckpoint.fill`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ray_imuckpt.encoding import tensors
from ray_imuckpt.errors import CorruptCheckpointError, located
from ray_imuckpt.loading import parts
from ray_imuckpt.loading.parts import StoredPart
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.loading.stored_state import Later, StoredState, saved_state
from ray_imuckpt.loading.targets import in_per_rank
from ray_imuckpt.repository import codec, decoding
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.metrics import metrics_of
from ray_imuckpt.state.live import LeftOut, SavedModel
from ray_imuckpt.state.optimizer import OptimizerState
from ray_imuckpt.state.restorable import Filled, Memory
from ray_imuckpt.state.restorable_random import SavedRandom
from ray_imuckpt.storage import Storage

_MODEL = codec.MODEL, codec.MODEL_FROZEN


class LoadedCheckpoint:
    """A committed checkpoint; each part is read, and verified, when it is first asked for.

    Attributes:
        left_out: The names that were ``missing`` from it, and those in it that were ``unexpected``,
            when it was restored into live objects with ``strict=False``.
    """

    def __init__(self, storage: Storage, manifest: Manifest, reader: Reader) -> None:
        self.storage = storage  # its directory
        self.manifest = manifest  # its commit record
        self.left_out = LeftOut()
        self._reader = reader
        self._later: Later | None = None

    @property
    def url(self) -> str:
        """Return where it is."""
        return self.storage.url

    @property
    def epoch(self) -> int:
        """Return the epoch at whose end it was made."""
        return self.manifest.epoch

    @property
    def step(self) -> int | None:
        """Return how many steps the training had made; ``None`` where that was not given."""
        return self.manifest.step

    @property
    def filling(self) -> bool:
        """Return whether live memory may hold a part of it: `fill` began to read it."""
        return self._reader.filling

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Return the metrics given with it."""
        return metrics_of(self.manifest)

    @cached_property
    def _model(self) -> SavedModel:
        return self._decoded_model(*self._fill_as_saved(self._model_parts))

    @property
    def model(self) -> dict[str, torch.Tensor]:
        """Return the model's tensors (CPU) by name in the bare module, tied ones twice."""
        return self._model.tensors

    @property
    def model_extra(self) -> dict[str, Any]:
        """Return what modules gave as extra state (``get_extra_state``), by name."""
        return self._model.extra

    @cached_property
    def optimizer(self) -> dict[str, Any] | None:
        """Return the optimizer's state (CPU); ``None`` if it was not saved.

        It holds ``class``, ``param_groups``, and ``state`` by the name of the parameter.
        """
        return self._decoded_optimizer(*self._fill_as_saved((self._optimizer_part,)))

    @property
    def log(self) -> Any:
        """Return the training log."""
        return self._state.shared.log

    @property
    def other(self) -> dict[str, Any]:
        """Return everything passed by keyword; objects as their ``state_dict``."""
        return self._state.shared.other

    @property
    def objects(self) -> frozenset[str]:
        """Return the names in `other` that hold states of objects."""
        return self._state.shared.objects

    @property
    def classes(self) -> dict[str, str]:
        """Return the names of the classes of `objects`, as far as they were saved."""
        return self._state.shared.classes

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """Return each rank's ``random`` state, ``per_rank``, and the ``classes`` of the latter."""
        return self._state.ranks

    def prepare(self, *, optimizer: bool, later: Later) -> None:
        """Read all but the tensors that `fill` reads, in the order every rank must keep.

        Args:
            optimizer: Whether to prepare for the optimizer as well.
            later: The objects whose tensors `fill` reads, beside the model's.

        Raises:
            CorruptCheckpointError: Something is damaged, missing or cut; nothing was filled.
        """
        self._reader.prefetch(self.manifest.files)
        self._later = later
        large = (*_MODEL, codec.OPTIMIZER) if optimizer else _MODEL
        files = [entry for part in large for entry in self.manifest.files_of(part, "safetensors")]
        self._reader.foresee(files)
        _ = self.metrics, self._state, *self._model_parts
        if optimizer:
            _ = self._optimizer_part

    def prepare_model(self) -> None:
        """Read all of the model but its tensors, as `prepare` does."""
        self._reader.prefetch([entry for entry in self.manifest.files if entry.part in _MODEL])
        _ = self._model_parts

    @cached_property
    def saved_model(self) -> SavedModel:
        """Return the model's state, a `TensorInfo` for each tensor: only headers are read."""
        return self._decoded_model(*(part.header.tensors for part in self._model_parts))

    @cached_property
    def saved_optimizer(self) -> OptimizerState | None:
        """Return `optimizer`, a `TensorInfo` for each tensor: only headers are read."""
        return self._decoded_optimizer(self._optimizer_part.header.tensors)

    @cached_property
    def saved_state(self) -> decoding.DecodedState:
        """Return log, `other` and more, a `TensorInfo` for each tensor: only headers are read."""
        with located(self.url, epoch=self.epoch):
            return saved_state(self._reader, self.manifest, self.url)

    @property
    def optimizer_class(self) -> str | None:
        """Return the name of the optimizer's class, ``None`` if it was not saved; as above."""
        known = self._optimizer_part.header.tensors
        saved = decoding.decode_optimizer(self.saved_state.optimizer, known, self.url)
        return None if saved is None else str(saved["class"])

    def fill(self, make_room: Callable[[], Memory], *, optimizer: bool) -> Callable[[], Filled]:
        """Read the tensors of the model, of the optimizer, and of what `prepare` has left for it.

        Args:
            make_room: Called in a meeting of the ranks; returns the tensors that take the bytes of
                stored ones. The others are read into new ones on the host.
            optimizer: Whether to read the optimizer's.

        Returns:
            What gives the states; no collective, and it may fail on one rank alone: where a tree is
            damaged, with `CorruptCheckpointError`. The model's tensors are contiguous: they are to
            be loaded into others, whose layout stays. The optimizer's, and those in extra state,
            are laid out as they were.

        Raises:
            CorruptCheckpointError: Bytes were altered; what the tensors hold is not to be used.
        """
        self._reader.foresee(())
        stored = [*self._model_parts]
        stored += [self._optimizer_part] if optimizer else []
        stored += [] if self._later is None else [self._state.rest]
        read = self._fill(stored, make_room)
        return lambda: self._filled(read, optimizer=optimizer)

    def _filled(self, read: Sequence[dict[str, Any]], *, optimizer: bool) -> Filled:
        trained, frozen, *rest = read
        tensors.lay_out(self._model_parts[0].header, trained, but=self.saved_model.tensors)
        filled = Filled(self._decoded_model(trained, frozen))
        if self._later is not None:
            other, own = self._state.filled(rest.pop())
            own = {in_per_rank(name): state for name, state in own.items()}
            filled = filled._replace(objects={**other, **own})
        if not optimizer:
            return filled
        tensors.lay_out(self._optimizer_part.header, *rest)
        return filled._replace(optimizer=self._decoded_optimizer(*rest))

    @property
    def model_locations(self) -> dict[str, list[parts.Location]]:
        """Return where each of the model's tensors lies, tied ones under each name."""
        return parts.locations(self._model_parts)

    @property
    def frozen(self) -> frozenset[str]:
        """Return the names of the parameters that required no gradient."""
        return frozenset(self._model_parts[1].header.tensors)

    @property
    def has_optimizer(self) -> bool:
        """Return whether it holds the state of the optimizer."""
        return self._state.shared.optimizer is not None

    @property
    def rank_zero(self) -> dict[str, Any]:
        """Return the state of rank 0, from which ranks that did not save derive theirs."""
        return self._state.of_zero

    @property
    def rank_here(self) -> dict[str, Any] | None:
        """Return the state of the rank that reads; ``None`` where there was no such rank."""
        return self._state.of_reader

    @property
    def per_rank(self) -> dict[str, Any]:
        """Return the states of the ``per_rank`` objects of the rank that reads; {} without any."""
        return {} if self.rank_here is None else self.rank_here["per_rank"]

    @property
    def saved_random(self) -> SavedRandom:
        """Return the states of random generators that concern the rank that reads."""
        here = None if self.rank_here is None else self.rank_here["random"]
        return SavedRandom(here, self.rank_zero["random"], self._reader.rank)

    @cached_property
    def _model_parts(self) -> tuple[StoredPart, StoredPart]:
        model, frozen = map(self._part, _MODEL)
        twice = model.header.tensors.keys() & frozen.header.tensors.keys()
        if twice:
            raise CorruptCheckpointError(
                f"The tensor {min(twice)} is in two parts, {codec.MODEL} and {codec.MODEL_FROZEN}.",
                url=self.url,
                epoch=self.epoch,
            )
        return model, frozen

    @cached_property
    def _optimizer_part(self) -> StoredPart:
        return self._part(codec.OPTIMIZER)

    def _part(self, part: str) -> StoredPart:
        with located(self.url, epoch=self.epoch):
            return parts.open_part(self._reader, self.manifest, part, self.url)

    def _fill(
        self, stored: Sequence[StoredPart], make_room: Callable[[], Memory]
    ) -> list[dict[str, Any]]:
        with located(self.url, epoch=self.epoch):
            return parts.fill(self._reader, stored, make_room)

    def _fill_as_saved(self, stored: Sequence[StoredPart]) -> list[dict[str, torch.Tensor]]:
        with located(self.url, epoch=self.epoch):
            return parts.fill_as_saved(self._reader, stored)

    def _decoded_model(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> SavedModel:
        metadata = self._model_parts[0].header.metadata
        named, extra = decoding.decode_model(trained, metadata)
        return SavedModel({**named, **frozen}, extra, decoding.decode_versions(metadata))

    def _decoded_optimizer(self, stored: Mapping[str, Any]) -> OptimizerState | None:
        return decoding.decode_optimizer(self._state.shared.optimizer, stored, self.url)

    @cached_property
    def _state(self) -> StoredState:
        with located(self.url, epoch=self.epoch):
            return StoredState(self._reader, self.manifest, self.url, self._later)

    def __repr__(self) -> str:
        """Return the epoch and where it is."""
        return f"LoadedCheckpoint(epoch={self.epoch}, url={self.url!r})"
