"""Take the state on every rank of a gang, and what other ranks hold of it where that must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits
from ray_imuckpt.encoding import tree
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec
from ray_imuckpt.repository.run import Run
from ray_imuckpt.state.model import take_model
from ray_imuckpt.state.objects import classes, is_stateful, take_object
from ray_imuckpt.state.optimizer import take_optimizer
from ray_imuckpt.state.partition import take_partition, without_state
from ray_imuckpt.state.random_state import take_random
from ray_imuckpt.state.sharding import (
    consolidate,
    gathered,
    holds_shards,
    is_zero_redundancy,
    try_state,
)
from ray_imuckpt.state.wrappers import bare, bare_optimizer

_SMALL = 1024 * 1024  # bytes of a rank state that is encoded before anyone knows who is to write it


@dataclass(frozen=True)
class Label:
    """The words by which a checkpoint is to be known.

    Attributes:
        epoch: The epoch that has ended.
        step: How many steps the training has made, if the user said so.
        metrics: Plain numbers, if there are any.
    """

    epoch: int
    step: int | None
    metrics: dict[str, Any] | None

    def __post_init__(self) -> None:
        """Raise `UnsupportedStateError` if the metrics cannot be stored."""
        tree.encode(self.metrics, {}, "metrics")

    @property
    def traits(self) -> dict[str, Any]:
        """Return what all ranks must say alike."""
        return {"epoch": self.epoch, "step": self.step, "metrics": sorted(self.metrics or {})}


@dataclass(frozen=True)
class Sources:
    """The live objects that a checkpoint is taken from; `Checkpointer.checkpoint` explains each."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    log: Any
    per_rank: Mapping[str, Any]
    other: Mapping[str, Any]

    def optimizers(self) -> list[Any]:
        """Return whatever of them steps parameters."""
        objects = [self.optimizer, *self.other.values(), *self.per_rank.values()]
        return [value for value in objects if hasattr(value, "param_groups")]

    @property
    def identity(self) -> tuple[int, int]:
        """Return the ``id()`` of the model and of the optimizer."""
        return id(bare(self.model)), id(bare_optimizer(self.optimizer))


@dataclass(frozen=True)
class Gathered:
    """The states of other ranks, on rank 0; elsewhere they are empty where rank 0 has some.

    Attributes:
        ranks: What belongs to each rank alone, where rank 0 writes for all.
        parts: The trees of what each rank steps, where the optimizer need not be consolidated.
    """

    ranks: Sequence[bytes] | None = None
    parts: Sequence[bytes] | None = None


@dataclass(frozen=True)
class Taken:
    """The state of this rank, before anything of it was asked of the others.

    Attributes:
        sources: What it was taken from.
        contents: What of it this rank knows alone: the live tensors, sharded ones as they are.
        shapes: Shape, dtype and placement of the tensors.
        rank: What belongs to this rank alone; a tensor that is sharded is its part of it.
        alone: The same, encoded; ``None`` where other ranks hold a part of it.
        partition: What this rank steps, where the optimizer gives each rank some of the parameters.
        encoded: The same as bytes, where they are few.
    """

    sources: Sources
    contents: codec.Contents
    shapes: traits.Shapes
    rank: Mapping[str, Any]
    alone: codec.RankState | None
    encoded: bytes | None
    partition: codec.Partition | None

    def complete(self, gang: Gang, gathered: Gathered) -> codec.Contents:
        """Return all that this rank is to know; a collective where a state is spread over ranks.

        Args:
            gang: The gang.
            gathered: What `gather` returned.
        """
        sources, contents = self.sources, self.contents
        optimizer = sources.optimizer
        if gathered.parts is not None and self.partition is not None:
            rest = without_state(optimizer, sources.model)
            contents.put_partition(self.partition, gathered.parts, rest)
        elif optimizer is not None and is_zero_redundancy(optimizer) and consolidate(optimizer):
            contents.put_optimizer(take_optimizer(optimizer, sources.model))
        for name, whole in _consolidated(sources.other).items():
            contents.put_other(name, whole)
        if gathered.ranks is None:
            contents.put_rank(self.alone or self.whole_rank(gang))
        else:
            contents.put_ranks(gathered.ranks)
        return contents

    def whole_rank(self, gang: Gang) -> codec.RankState:
        """Return what belongs to this rank alone, with what others hold of it; a collective."""
        per_rank: dict[str, Any] = gathered(dict(self.rank["per_rank"]))
        per_rank |= _consolidated(self.sources.per_rank)
        return codec.RankState({**self.rank, "per_rank": per_rank}, gang.rank)


@torch.no_grad()  # or the part of each sharded tensor would get a history
def take(gang: Gang, run: Run, sources: Sources) -> tuple[Taken, Traits]:
    """Take the state of this rank; no collective.

    What is replicated is compared between the ranks when a model and an optimizer are taken for the
    first time in a run; `compared` says that this was done.

    Returns:
        The state, and what must be the same on all ranks.

    Raises:
        UnsupportedStateError: This rank's state cannot be stored.
    """
    model = take_model(sources.model)
    contents = codec.Contents(model, leads=gang.rank == 0)
    optimizer = partition = None
    if is_zero_redundancy(sources.optimizer):
        try_state(sources.optimizer)
        state = take_partition(sources.optimizer, sources.model, gang.world_size)
        partition = None if state is None else codec.Partition(state)
    elif sources.optimizer is not None:
        optimizer = take_optimizer(sources.optimizer, sources.model)
        contents.put_optimizer(optimizer)
    per_rank = {name: sources.per_rank[name] for name in sorted(sources.per_rank)}
    states = _states(per_rank)
    rank = {"random": take_random(), "per_rank": states, "classes": classes(sources.per_rank)}
    spread = any(map(is_zero_redundancy, per_rank.values())) or holds_shards(states)
    alone = None if spread else codec.RankState(rank, gang.rank)
    other = _states(sources.other)
    for name, state in other.items():
        contents.put_other(name, state)
    contents.put_log([] if sources.log is None else sources.log)
    objects = [name for name, value in sources.other.items() if is_stateful(value)]
    contents.put_objects(objects, classes(sources.other))
    shards = traits.of_shards({"other": other, "per_rank": states, "extra": dict(model.extra)})
    shapes = traits.Shapes(model, optimizer, shards)
    small = alone is not None and alone.size < _SMALL and gang.world_size > 1
    encoded = alone.to_bytes() if alone is not None and small else None
    taken = Taken(sources, contents, shapes, rank, alone, encoded, partition)
    if gang.world_size == 1:
        return taken, Traits()
    return taken, _compared(sources, taken, other, first=run.compared != sources.identity)


def _compared(sources: Sources, taken: Taken, other: Mapping[str, Any], *, first: bool) -> Traits:
    """Return what is compared between the ranks."""
    shapes = taken.shapes
    may_differ = traits.fingerprints(sources.other, other, tensors=first)
    if not first:
        return Traits(tensors=shapes, may_differ=may_differ)
    may_differ |= traits.buffer_values(sources.model, sources.per_rank, shapes.model)
    values = traits.replicated_values(
        sources.model, sources.optimizer, sources.per_rank, shapes.model, shapes.optimizer
    )
    return Traits(tensors=shapes, values=values, may_differ=may_differ)


def compared(run: Run, sources: Sources) -> None:
    """Remember that the ranks hold these alike, as far as `take` compares them once only."""
    run.compared = sources.identity


def gather(
    gang: Gang, taken: Taken, notes: Sequence[Mapping[str, Any]], *, together: bool
) -> Gathered:
    """Bring to rank 0 what it must know of the other ranks; a collective.

    Args:
        gang: The gang; all ranks have taken their state by now, and hold alike what they should.
        taken: The state of this rank.
        notes: What `division.note` said on each rank.
        together: Whether every rank writes a part of the save.
    """
    if gang.world_size == 1:
        return Gathered()
    if not together:
        return Gathered(ranks=_rank_states(gang, taken, [note["size"] for note in notes]))
    parts = [note["part"] for note in notes]
    if taken.partition is None or None in parts:
        return Gathered()
    return Gathered(parts=gang.gather(taken.partition.text, [length for length, _ in parts]))


def _rank_states(gang: Gang, taken: Taken, sizes: Sequence[int | None]) -> list[bytes]:
    """Return what belongs to each rank alone, as bytes, on rank 0; [] elsewhere. A collective."""
    known = [size for size in sizes if size is not None]
    if taken.encoded is not None and len(known) == len(sizes):
        return gang.gather(taken.encoded, known)

    def whole() -> tuple[bytes, bytes]:
        encoded = (taken.alone or taken.whole_rank(gang)).to_bytes()
        return encoded, str(len(encoded)).encode()

    encoded, lengths = gang.exchange(whole)
    return gang.gather(encoded, [int(length) for length in lengths])


def _states(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of the objects, ``None`` for what is still to be consolidated."""
    states: dict[str, Any] = {}
    for name, value in objects.items():
        if is_zero_redundancy(value):
            try_state(value)
            states[name] = None
        else:
            states[name] = take_object(value)
    return states


def _consolidated(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of those that are to be consolidated, on rank 0; a collective."""
    return {
        name: take_object(objects[name])
        for name in sorted(objects)
        if is_zero_redundancy(objects[name]) and consolidate(objects[name])
    }
