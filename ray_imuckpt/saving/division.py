"""Divide a save among the ranks: rank 0 writes all of it, or every rank writes what it owns.

All ranks decide alike, from what they have told each other in a meeting (`note`). They write
together where a tensor is sharded, so that no rank has to hold all of it; and where there is so
much to write that it goes faster. For that all must see the same storage, which is tried once in a
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.tensors import Piece
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.run import Remembered, Run
from ray_imuckpt.saving import meshes, probe
from ray_imuckpt.saving.collect import Taken
from ray_imuckpt.saving.owners import Held, Position, owners
from ray_imuckpt.state.names import names_of
from ray_imuckpt.state.objects import may_be_sharded
from ray_imuckpt.state.pieces import Share, place_in_mesh, share_of
from ray_imuckpt.state.sharding import part_here, spread_of
from ray_imuckpt.state.wrappers import bare_optimizer
from ray_imuckpt.storage import Storage

# Bytes. What is less is sent by one process in one round of its 16 connections, of which each has
# at least 5 MiB of it: more ranks would not be faster (docs/performance.md).
TOGETHER_FROM = 80 * 1024 * 1024
_OPTIMIZER_STATE = f"{codec.OPTIMIZER}/optimizer.state."
_ROUND = 1024 * 1024  # what ranks write beside their shares changes by some bytes at every save


@dataclass(frozen=True)
class Holdings:
    """The tensors that the ranks may share out, as one of them sees them.

    Attributes:
        held: They, in an order that is the same on all ranks.
        positions: Which piece this rank holds in each way of being spread.
        digest: Of `held`, the same on all ranks.
    """

    held: tuple[Held, ...]
    positions: tuple[Position | None, ...]
    digest: str

    @property
    def sharded(self) -> bool:
        """Return whether any of them is sharded."""
        return bool(self.positions)

    @cached_property
    def size(self) -> int:
        """Return the bytes of all of them."""
        return sum(held.size for held in self.held)


@dataclass(frozen=True)
class Division:
    """The part of a save that is this rank's to write.

    Attributes:
        save_id: Of the save.
        rank: This rank.
        owned: The names of what this rank owns; ``None`` where rank 0 writes everything.
        held: The tensors that are shared out, by their name in the whole checkpoint.
        partitioned: Bytes of the optimizer's state that other ranks write, each of what it steps.
        pieces: Which piece this rank holds of a tensor of that spread and shape, as it is found.
    """

    save_id: str
    rank: int = 0
    owned: frozenset[str] | None = None
    held: Mapping[str, Held] | None = None
    pieces: dict[Any, Piece | None] = field(default_factory=dict)
    partitioned: int = 0

    @property
    def together(self) -> bool:
        """Return whether every rank writes a part."""
        return self.owned is not None

    def choose(self, key: str, tensor: torch.Tensor) -> Share | None:
        """Return what of a tensor this rank writes; see `codec.Choose`."""
        if self.owned is None or self.held is None or key not in self.held:
            return Share(tensor, None) if self.rank == 0 else None
        if key not in self.owned:
            return None
        if not tensor.numel():
            return Share(torch.empty(tensor.shape, dtype=tensor.dtype), None)
        cut = (self.held[key].spread, tensor.shape)
        if cut not in self.pieces:  # thousands of tensors are cut in the same few ways
            self.pieces[cut] = share_of(tensor).piece
        local = part_here(tensor)
        return Share(local, self.pieces[cut]) if local.numel() else None

    def left_to_others(self, plan: codec.Plan) -> dict[str, int]:
        """Return how many bytes of each part the other ranks write, given what this one does.

        Not of `codec.STATE`, to which they add what is theirs alone.
        """
        left = dict.fromkeys((codec.MODEL, codec.MODEL_FROZEN, codec.OPTIMIZER), 0)
        held = self.held or {}
        left[codec.OPTIMIZER] += self.partitioned
        sizes = [(key, one.size) for key, one in held.items()]
        sizes += [(key, -tensor.nbytes) for key, tensor in plan.tensors().items() if key in held]
        for key, size in sizes:
            part = key.partition("/")[0]
            if part in left:
                left[part] += size
        return left


def holdings(run: Run, taken: Taken) -> Holdings:
    """Return what may be shared out of what this rank has taken."""
    sources, model = taken.sources, taken.shapes.model
    modules = [value for value in sources.per_rank.values() if isinstance(value, nn.Module)]
    differing = model.buffers
    if modules:  # else a walk through the model for nothing
        differing |= names_of(sources.model, modules)
    optimizer = bare_optimizer(sources.optimizer)
    alone = any(
        bare_optimizer(value) is optimizer for value in sources.per_rank.values() if optimizer
    )
    key = (sources.identity, taken.shapes.digest(), model.frozen, differing, alone)
    if run.holdings is None or run.holdings.key != key:
        # What may differ between the ranks is rank 0's to write, unless it is sharded.
        listed = _list(taken.contents, differing, alone=alone)
        run.holdings = Remembered(key, listed)
    held: Holdings = run.holdings.value
    return held


def _list(contents: codec.Contents, differing: frozenset[str], *, alone: bool) -> Holdings:
    named = {
        f"{part}/{name}": (name, tensor)
        for part, found in contents.tensors.items()
        for name, tensor in found.items()
    }
    spreads: dict[Any, int] = {}
    positions: list[Position | None] = []
    held = []
    for key in sorted(named):
        name, tensor = named[key]
        spread = spread_of(tensor)
        if spread is None:
            if key.startswith(_OPTIMIZER_STATE):
                shared = not alone
            else:
                shared = name in contents.model.tensors and name not in differing
                shared = shared and key.startswith((f"{codec.MODEL}/", f"{codec.MODEL_FROZEN}/"))
        elif spread not in spreads:
            spreads[spread] = len(spreads)
            positions.append(place_in_mesh(tensor))
        if spread is not None or shared:
            size = tensor.numel() * tensor.element_size()
            held.append(Held(key, size, None if spread is None else spreads[spread]))
    digest = chunks.checksum([repr(held).encode()])
    return Holdings(tuple(held), tuple(positions), digest)


def note(gang: Gang, storage: Storage, run: Run, epoch: int, taken: Taken) -> dict[str, Any]:
    """Return what this rank tells the others, in JSON's types; no collective.

    On rank 0 a small file is put beside it, by which the others see whether they see the same
    storage, where that is not known and they may have to.
    """
    size = None if taken.encoded is None else len(taken.encoded)
    if gang.world_size == 1:
        return {"id": paths.new_save_id(), "size": size}
    held = holdings(run, taken)
    part = taken.partition
    of_rank = taken.alone.size + (part.size if part else 0)
    sharded = held.sharded or taken.alone.spread
    message: dict[str, Any] = {
        "size": size, "own": of_rank // _ROUND, "sharded": sharded, "held": held.digest,
        "positions": held.positions,
        "part": (len(part.text), part.size_of_optimizer) if part else None,
    }  # fmt: skip
    if taken.alone.spread:
        message["shards"] = meshes.note(taken.alone)
    if gang.rank == 0:
        message["id"] = paths.new_save_id()
        rest = taken.contents.plain_size
        message["rest"] = rest // _ROUND
        large = held.size + rest + of_rank * gang.world_size >= TOGETHER_FROM
        message["large"] = large and run.shared is not False
        must = (sharded or message["large"]) and not run.shared
        # What another rank has in `per_rank` may be sharded, though it is not on this one.
        if must or (
            run.shared is None and any(map(may_be_sharded, taken.sources.per_rank.values()))
        ):
            message["probe"] = probe.put(storage, epoch, message["id"])
    return message


def divide(
    gang: Gang, storage: Storage, run: Run, epoch: int, taken: Taken, notes: Sequence[Any]
) -> Division:
    """Decide who writes what, on every rank alike; a collective at the first time in a run.

    Args:
        gang: The gang.
        storage: The run directory.
        run: The memory of the run.
        epoch: Of the checkpoint.
        taken: The state of this rank.
        notes: What `note` returned on each rank.

    Raises:
        StateMismatchError: The ranks do not hold the same tensors, or not all of one.
        StorageError: They do not see the same storage, and a tensor is sharded.
    """
    save_id = notes[0]["id"]
    sharded = any(message.get("sharded") for message in notes)
    if notes[0].get("probe"):
        run.shared = probe.is_seen(gang, storage, epoch, save_id, sharded=sharded)
    if not sharded and not (notes[0].get("large") and run.shared):
        return Division(save_id)
    meshes.check(gang, taken.alone, [message.get("shards", {}) for message in notes])
    held = holdings(run, taken)
    differing = [rank for rank, message in enumerate(notes) if message["held"] != held.digest]
    if any(message["held"] != notes[0]["held"] for message in notes):
        raise StateMismatchError(
            "The ranks hold tensors of different names or kinds: which of them are trained, or how "
            "they are spread over the ranks, is not the same on all.",
            rank=differing[0] if gang.rank == 0 else None,
            hint="Build the model and the optimizer alike on every rank.",
        )
    positions = [[None if p is None else tuple(p) for p in each["positions"]] for each in notes]
    burdens = [message["own"] * _ROUND for message in notes]
    burdens[0] += notes[0]["rest"] * _ROUND
    key = (held.digest, positions, burdens)
    if run.shares is None or run.shares.key != key:
        run.shares = Remembered(key, _shares(held.held, positions, burdens, gang.rank))
    parts = [message["part"] for message in notes]
    partitioned = 0 if None in parts else sum(size for _, size in parts[1:])
    owned, by_key, pieces = run.shares.value
    return Division(save_id, gang.rank, owned, by_key, pieces, partitioned)


def _shares(
    held: Sequence[Held],
    positions: Sequence[Sequence[Position | None]],
    burdens: Sequence[int],
    rank: int,
) -> tuple[frozenset[str], dict[str, Held], dict[Any, Any]]:
    """Return what a rank owns; frozen parameters are dealt by themselves, and so stay with it."""
    frozen = [one for one in held if one.key.startswith(f"{codec.MODEL_FROZEN}/")]
    others = [one for one in held if not one.key.startswith(f"{codec.MODEL_FROZEN}/")]
    still = owners(frozen, positions, [0] * len(burdens))
    moving = owners(others, positions, burdens)
    return still[rank] | moving[rank], {one.key: one for one in held}, {}
