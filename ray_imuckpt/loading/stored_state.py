"""The ``state`` part of a stored checkpoint: what all ranks hold alike, and the rank states.

Of a gang's ranks each reads its own rank state, and that of rank 0; not those of all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ray_imuckpt.encoding import tensors
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.loading import parts
from ray_imuckpt.loading.reader import Reader
from ray_imuckpt.repository import codec, decoding
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.rank_state import SHARDS
from ray_imuckpt.state.spread import stored_in


class Later(NamedTuple):
    """The names of objects whose tensors are read with the model's: they are spread over the ranks.

    Attributes:
        other: Of those given by keyword.
        per_rank: Of those in ``per_rank``, on this rank.
        whole: Of those in ``per_rank`` of which sharded tensors are read at once, all of each;
            ``None``: of all that are not read later.
    """

    other: Collection[str] = ()
    per_rank: Collection[str] = ()
    whole: Collection[str] | None = None


class StoredState:
    """The ``state`` part. To make one, and to look at `ranks`, is a collective in a gang.

    Args:
        reader: The checkpoint.
        manifest: Its commit record.
        url: Where it is, for errors.
        later: The objects whose tensors are not read yet: their states say where these lie.

    Attributes:
        shared: What all ranks hold alike.
        rest: The part without the tensors that have been read.

    Raises:
        CorruptCheckpointError: It is damaged.
    """

    def __init__(
        self, reader: Reader, manifest: Manifest, url: str, later: Later | None = None
    ) -> None:
        self._reader = reader
        self._url = url
        self._world_size = manifest.world_size
        self._later = later or Later()
        self._texts = _texts(reader, manifest, url)
        self._part = parts.open_part(reader, manifest, codec.STATE, url)
        self._stored = self._part.header.tensors
        shards = {name for name in self._stored if name.startswith(SHARDS)}
        waits, own = self._sharded(shards)
        self.rest = self._part.only(waits.__contains__)
        near = self._part.only(lambda n: n not in waits and (n in own or self._is_near(n)))
        self._tensors: dict[str, torch.Tensor] = parts.fill_as_saved(reader, (near,))[0]
        # What stands for tensors where only some of them were read.
        self._known = {**{n: self._stored[n] for n in shards | waits}, **self._tensors}
        self.shared = self._decode({**{n: self._stored[n] for n in waits}, **self._tensors})

    def _sharded(self, shards: set[str]) -> tuple[set[str], set[str]]:
        """Return the names of what is read later, and of the shards in this rank's state."""
        later = self._later
        if not (shards or later.other or later.per_rank):
            return set(), set()
        decoded = self._decode(self._stored)
        try:
            objects = self._per_rank(decoded, self._stored)
        except CorruptCheckpointError:  # on one rank alone: `of_reader` raises it in a meeting
            objects = {}
        waiting = [decoded.other.get(name) for name in later.other]
        waiting += [objects.get(name) for name in later.per_rank]
        at_once = objects
        if later.whole is not None:
            at_once = {name: objects[name] for name in later.whole if name in objects}
        keys, of_rank = {*stored_in(waiting)}, {*stored_in(at_once)}
        return (
            {name for name, info in self._stored.items() if info.key in keys},
            {name for name in shards if self._stored[name].key in of_rank},
        )

    def _per_rank(
        self, decoded: decoding.DecodedState, stored: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the states of the objects of the rank that reads; {} where no such rank saved."""
        rank = self._reader.rank
        if rank >= len(decoded.ranks):
            return {}
        return decoding.decode_per_rank(decoded.ranks[rank], stored)

    def filled(self, read: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states of the objects whose tensors have been read by now.

        Args:
            read: The tensors of `rest`.

        Returns:
            Those given by keyword and those in ``per_rank``; what was not saved is left out.
        """
        tensors.lay_out(self.rest.header, filled := dict(read))
        stored = {**self._known, **filled}
        decoded = self._decode(stored) if self._later.other else self.shared
        own = self._per_rank(decoded, stored) if self._later.per_rank else {}
        return (
            {name: decoded.other[name] for name in self._later.other if name in decoded.other},
            {name: own[name] for name in self._later.per_rank if name in own},
        )

    @cached_property
    def of_zero(self) -> dict[str, Any]:
        """Return the state of rank 0; of what was not read, where it lies."""
        return self._decoded(0, self._known)

    @cached_property
    def of_reader(self) -> dict[str, Any] | None:
        """Return the state of the rank that reads; ``None`` where no rank of its number saved.

        Of what was not read it says where it lies.
        """
        if self._reader.rank >= len(self.shared.ranks):
            return None
        return self._decoded(self._reader.rank, self._known)

    @cached_property
    def ranks(self) -> list[dict[str, Any]]:
        """Return all rank states, in rank order; what is sharded is whole, and the same for all."""
        far = self._part.only(lambda name: name not in self._tensors)
        stored = self._tensors
        if far.header.tensors:
            stored = {**stored, **parts.fill_as_saved(self._reader, (far,))[0]}
        return [self._decoded(rank, stored) for rank in range(len(self.shared.ranks))]

    def _is_near(self, name: str) -> bool:
        """Return whether a tensor is of the ranks whose state is read here, or of none."""
        if name.startswith(SHARDS):
            return False
        return decoding.rank_of(name) in {None, 0, self._reader.rank}

    def _decode(self, stored: Mapping[str, Any]) -> decoding.DecodedState:
        return decoding.decode_state(self._texts, stored, self._world_size, self._url)

    def _decoded(self, rank: int, stored: Mapping[str, Any]) -> dict[str, Any]:
        return decoding.decode_rank(self.shared.ranks[rank], stored, self._url)


def saved_state(reader: Reader, manifest: Manifest, url: str) -> decoding.DecodedState:
    """Return what all ranks hold alike, a `TensorInfo` for each tensor: only headers are read.

    It is a collective in a gang; arguments and errors as for `StoredState`.
    """
    texts = _texts(reader, manifest, url)
    header = parts.open_part(reader, manifest, codec.STATE, url).header
    return decoding.decode_state(texts, header.tensors, manifest.world_size, url)


def _texts(reader: Reader, manifest: Manifest, url: str) -> list[bytes]:
    """Return the trees of the part; errors as for `StoredState`."""
    entries = manifest.files_of(codec.STATE, "json")
    if not entries:
        raise CorruptCheckpointError("The checkpoint has no state part.", url=url)
    return [reader.whole(entry) for entry in entries]
