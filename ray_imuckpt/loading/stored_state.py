"""The ``state`` part of a stored checkpoint: what all ranks hold alike, and the rank states.

Of a gang's ranks each reads its own rank state, and that of rank 0; not those of all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import torch

from ray_imuckpt.encoding import tensors
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.loading import parts
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.repository import codec, decoding
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.state.spread import stored_in


class StoredState:
    """The ``state`` part. To make one, and to look at `ranks`, is a collective in a gang.

    Args:
        reader: The checkpoint.
        manifest: Its commit record.
        url: Where it is, for errors.
        later: The names of objects in `other` whose tensors are not read yet: their states say
            where these lie.

    Attributes:
        shared: What all ranks hold alike.
        rest: The part without the tensors that have been read.

    Raises:
        CorruptCheckpointError: It is damaged.
    """

    def __init__(
        self, reader: Reader, manifest: Manifest, url: str, later: Collection[str] = ()
    ) -> None:
        entries = manifest.files_of(codec.STATE, "json")
        if not entries:
            raise CorruptCheckpointError("The checkpoint has no state part.", url=url)
        self._reader = reader
        self._url = url
        self._world_size = manifest.world_size
        self._texts = [reader.whole(entry) for entry in entries]
        self._part = parts.open_part(reader, manifest, codec.STATE, url)
        stored = self._part.header.tensors
        waits: set[str] = set()
        if later:
            other = self._decode(stored).other
            keys = {key for name in later if name in other for key in stored_in(other[name])}
            waits = {name for name, info in stored.items() if info.key in keys}
        self.rest = self._part.only(waits.__contains__)
        near = self._part.only(lambda name: name not in waits and self._is_near(name))
        self._tensors: dict[str, torch.Tensor] = parts.fill_as_saved(reader, (near,))[0]
        self.shared = self._decode({**{name: stored[name] for name in waits}, **self._tensors})

    def filled(self, read: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Return the states of objects whose tensors have been read by now.

        Args:
            read: The tensors of `rest`.
            names: The names of the objects; those that were not saved are left out.
        """
        tensors.lay_out(self.rest.header, filled := dict(read))
        other = self._decode({**self._tensors, **filled}).other
        return {name: other[name] for name in names if name in other}

    @cached_property
    def of_zero(self) -> dict[str, Any]:
        """Return the state of rank 0."""
        return self._decoded(0, self._tensors)

    @cached_property
    def of_reader(self) -> dict[str, Any] | None:
        """Return the state of the rank that reads; ``None`` where no rank of its number saved."""
        rank = self._reader.rank
        return self._decoded(rank, self._tensors) if rank < len(self.shared.ranks) else None

    @cached_property
    def ranks(self) -> list[dict[str, Any]]:
        """Return all rank states, in rank order."""
        far = self._part.only(lambda name: not self._is_near(name))
        stored = self._tensors
        if far.header.tensors:
            stored = {**stored, **parts.fill_as_saved(self._reader, (far,))[0]}
        return [self._decoded(rank, stored) for rank in range(len(self.shared.ranks))]

    def _is_near(self, name: str) -> bool:
        """Return whether a tensor is of the ranks whose state is read here, or of none."""
        return decoding.rank_of(name) in {None, 0, self._reader.rank}

    def _decode(self, stored: Mapping[str, Any]) -> decoding.DecodedState:
        return decoding.decode_state(self._texts, stored, self._world_size, self._url)

    def _decoded(self, rank: int, stored: dict[str, torch.Tensor]) -> dict[str, Any]:
        return decoding.decode_rank(self.shared.ranks[rank], stored, self._url)
