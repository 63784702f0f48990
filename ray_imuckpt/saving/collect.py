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
from ray_imuckpt.repository.rank_state import Partition, RankState
from ray_imuckpt.repository.run import Run
from ray_imuckpt.state.model import take_model
from ray_imuckpt.state.objects import classes, is_stateful, take_object
from ray_imuckpt.state.optimizer import take_optimizer
from ray_imuckpt.state.partition import (
    take_numbered,
    take_own,
    take_partition,
    take_shared_numbered,
    without_state,
)
from ray_imuckpt.state.random_state import take_random
from ray_imuckpt.state.sharding import consolidate, is_zero_redundancy, try_state
from ray_imuckpt.state.wrappers import bare, bare_optimizer

_SMALL = 1024 * 1024  # bytes of a rank state that is encoded before anyone knows who is to write it


@dataclass(frozen=True)
class Label:
    """The words by which a checkpoint is to be known.

    Attributes:
        epoch: The epoch that has ended.
        step: How many steps the training has made, if the user said so.
        metrics: Plain numbers, if there are any.
        validation: Whether, or how, Ray is to validate it; ``False``: not.
    """

    epoch: int
    step: int | None
    metrics: dict[str, Any] | None
    validation: Any = False

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
        parts: The trees of what each rank steps, where optimizers need not be consolidated.
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
        alone: What belongs to this rank alone, and its pieces of what is sharded in that.
        encoded: The same as bytes, where they are few and nothing of them is sharded.
        partition: What this rank steps, where optimizers give each rank some of the parameters and
            need not be consolidated.
    """

    sources: Sources
    contents: codec.Contents
    shapes: traits.Shapes
    alone: RankState
    encoded: bytes | None
    partition: Partition | None

    def complete(self, gathered: Gathered) -> codec.Contents:
        """Return all that this rank is to know; a collective where a state is spread over ranks.

        Args:
            gathered: What `gather` returned.
        """
        sources, contents = self.sources, self.contents
        optimizer = sources.optimizer
        if gathered.parts is not None and self.partition is not None:
            zero = is_zero_redundancy(optimizer)
            rest = without_state(optimizer, sources.model) if zero else None
            others = {
                name: {**take_numbered(value), "state": {}}
                for name, value in _zero_redundancy(sources.other).items()
            }
            contents.put_partition(self.partition, gathered.parts, rest, others)
        else:
            zero = optimizer is not None and is_zero_redundancy(optimizer)
            if optimizer is not None and zero and consolidate(optimizer):
                contents.put_optimizer(take_optimizer(optimizer, sources.model))
            for name, value in _zero_redundancy(sources.other).items():
                if consolidate(value):
                    contents.put_other(name, take_object(value))
        if gathered.ranks is None:
            contents.put_rank(self.alone)
        else:
            contents.put_ranks(gathered.ranks)
        return contents


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
    optimizer = None
    if is_zero_redundancy(sources.optimizer):
        try_state(sources.optimizer)
    elif sources.optimizer is not None:
        optimizer = take_optimizer(sources.optimizer, sources.model)
        contents.put_optimizer(optimizer)
    per_rank = {name: sources.per_rank[name] for name in sorted(sources.per_rank)}
    states = {name: _own_state(value) for name, value in per_rank.items()}
    rank = {"random": take_random(), "per_rank": states, "classes": classes(sources.per_rank)}
    alone = RankState(rank, gang.rank)
    other = {name: _state(value) for name, value in sources.other.items()}
    for name, state in other.items():
        contents.put_other(name, state)
    contents.put_log([] if sources.log is None else sources.log)
    objects = [name for name, value in sources.other.items() if is_stateful(value)]
    contents.put_objects(objects, classes(sources.other))
    shards = traits.of_shards({"other": other, "extra": dict(model.extra)})
    shapes = traits.Shapes(model, optimizer, shards)
    small = not alone.spread and alone.size < _SMALL and gang.world_size > 1
    encoded = alone.to_bytes() if small else None
    taken = Taken(sources, contents, shapes, alone, encoded, _partition(sources, gang.world_size))
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
        encoded = taken.alone.to_bytes()
        return encoded, str(len(encoded)).encode()

    encoded, lengths = gang.exchange(whole)
    return gang.gather(encoded, [int(length) for length in lengths])


def _state(value: Any) -> Any:
    """Return the state of what is given by keyword; ``None`` while that is with several ranks."""
    if is_zero_redundancy(value):
        try_state(value)
        return None
    return take_object(value)


def _own_state(value: Any) -> Any:
    """Return the state of an object of this rank; of what is spread, this rank's part."""
    return take_own(value) if is_zero_redundancy(value) else take_object(value)


def _zero_redundancy(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of which each rank has some parameters to step, in the order of all ranks."""
    return {name: objects[name] for name in sorted(objects) if is_zero_redundancy(objects[name])}


def _partition(sources: Sources, world_size: int) -> Partition | None:
    """Return what this rank steps; ``None`` where no optimizer is divided, or one otherwise."""
    of_model = None
    if is_zero_redundancy(sources.optimizer):
        of_model = take_partition(sources.optimizer, sources.model, world_size)
        if of_model is None:
            return None
    others = {
        name: take_shared_numbered(value, world_size)
        for name, value in _zero_redundancy(sources.other).items()
    }
    if (of_model is None and not others) or None in others.values():
        return None
    return Partition(of_model, {name: s["state"] for name, s in others.items() if s is not None})
