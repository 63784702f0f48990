"""The ``state`` part of a stored checkpoint: what all ranks hold alike, and the rank states.

Of a gang's ranks each reads its own rank state, and that of rank 0; not those of all others.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.loading import parts
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.repository import codec, decoding
from ray_imuckpt.repository.manifest import Manifest


class StoredState:
    """The ``state`` part. To make one, and to look at `ranks`, is a collective in a gang.

    Args:
        reader: The checkpoint.
        manifest: Its commit record.
        url: Where it is, for errors.

    Attributes:
        shared: What all ranks hold alike.

    Raises:
        CorruptCheckpointError: It is damaged.
    """

    def __init__(self, reader: Reader, manifest: Manifest, url: str) -> None:
        entries = manifest.files_of(codec.STATE, "json")
        if not entries:
            raise CorruptCheckpointError("The checkpoint has no state part.", url=url)
        self._reader = reader
        self._url = url
        texts = [reader.whole(entry) for entry in entries]
        self._part = parts.open_part(reader, manifest, codec.STATE, url)
        near = self._part.only(lambda name: self._is_near(decoding.rank_of(name)))
        self._tensors: dict[str, torch.Tensor] = parts.fill_as_saved(reader, (near,))[0]
        self.shared = decoding.decode_state(texts, self._tensors, manifest.world_size, url)

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
        far = self._part.only(lambda name: not self._is_near(decoding.rank_of(name)))
        stored = self._tensors
        if far.header.tensors:
            stored = {**stored, **parts.fill_as_saved(self._reader, (far,))[0]}
        return [self._decoded(rank, stored) for rank in range(len(self.shared.ranks))]

    def _is_near(self, rank: int | None) -> bool:
        return rank in {None, 0, self._reader.rank}

    def _decoded(self, rank: int, stored: dict[str, torch.Tensor]) -> dict[str, Any]:
        return decoding.decode_rank(self.shared.ranks[rank], stored, self._url)
