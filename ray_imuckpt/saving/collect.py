"""Take the state on every rank of a gang, and bring it together on rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits
from ray_imuckpt.encoding import tree
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec
from ray_imuckpt.repository.run import Run
from ray_imuckpt.state.model import ModelState, take_model
from ray_imuckpt.state.objects import classes, is_stateful, take_object
from ray_imuckpt.state.optimizer import take_optimizer
from ray_imuckpt.state.random_state import take_random
from ray_imuckpt.state.sharding import (
    consolidate,
    gathered,
    is_zero_redundancy,
    shards_in,
    try_state,
)
from ray_imuckpt.state.wrappers import bare, bare_optimizer


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


@dataclass(frozen=True)
class Taken:
    """The state of this rank, before anything of it was asked of the others.

    Attributes:
        sources: What it was taken from.
        model: The model's state; a tensor that is sharded is this rank's part of it.
        optimizer: The optimizer's, likewise; ``None`` without one, and before it is consolidated.
        other: The states of what was given by keyword, likewise.
        rank: What belongs to this rank alone, likewise.
        encoded: The same as bytes; ``None`` where other ranks hold a part of it.
    """

    sources: Sources
    model: ModelState
    optimizer: dict[str, Any] | None
    other: Mapping[str, Any]
    rank: dict[str, Any]
    encoded: bytes | None

    def state(self, ranks: list[bytes]) -> codec.TrainingState:
        """Return the state of the gang, complete on rank 0; a collective where a part is sharded.

        Args:
            ranks: The rank states, in rank order; on rank 0.
        """
        sources, model = self.sources, self.model
        state = codec.TrainingState(
            model=replace(
                model,
                tensors=gathered(dict(model.tensors)),
                extra=gathered(dict(model.extra)),
            ),
            optimizer=gathered(self.optimizer),
            log=[] if sources.log is None else sources.log,
            other=_all_of(self.other, sources.other),
            objects=[name for name, value in sources.other.items() if is_stateful(value)],
            ranks=ranks,
            classes=classes(sources.other),
        )
        optimizer = sources.optimizer
        if optimizer is not None and is_zero_redundancy(optimizer) and consolidate(optimizer):
            state = replace(state, optimizer=take_optimizer(optimizer, sources.model))
        return state


def take(gang: Gang, run: Run, sources: Sources) -> tuple[Taken, Traits, int | None]:
    """Take the state of this rank; no collective.

    What is replicated is compared between the ranks when a model and an optimizer are taken for the
    first time in a run; `compared` says that this was done.

    Returns:
        The state; what must be the same on all ranks; and for `gather` how many bytes of state
        belong to this rank alone, ``None`` where other ranks hold a part of them.

    Raises:
        UnsupportedStateError: This rank's state cannot be stored.
    """
    taken = _take(sources, gang.rank)
    size = None if taken.encoded is None else len(taken.encoded)
    if gang.world_size == 1:
        return taken, Traits(), size
    first = run.compared != _identity(sources)
    shards = traits.of_shards({"other": taken.other, "per_rank": taken.rank["per_rank"]})
    tensors = traits.Shapes(taken.model, taken.optimizer, shards)
    may_differ = traits.fingerprints(sources.other, taken.other, tensors=first)
    if not first:
        return taken, Traits(tensors=tensors, may_differ=may_differ), size
    per_rank = sources.per_rank
    may_differ |= traits.buffer_values(sources.model, per_rank, taken.model)
    values = traits.replicated_values(
        sources.model, sources.optimizer, per_rank, taken.model, taken.optimizer
    )
    return taken, Traits(tensors=tensors, values=values, may_differ=may_differ), size


def compared(run: Run, sources: Sources) -> None:
    """Remember that the ranks hold these alike, as far as `take` compares them once only."""
    run.compared = _identity(sources)


def gather(gang: Gang, taken: Taken, sizes: Sequence[int | None]) -> list[bytes]:
    """Return what belongs to each rank alone, as bytes, on rank 0; [] elsewhere. A collective.

    Args:
        gang: The gang; all ranks have taken their state by now, and hold alike what they should.
        taken: The state of this rank.
        sizes: What `take` said of the size on each rank.
    """
    known = [size for size in sizes if size is not None]
    if taken.encoded is not None and len(known) == len(sizes):
        return gang.gather(taken.encoded, known)

    def whole() -> tuple[bytes, bytes]:
        per_rank = _all_of(taken.rank["per_rank"], taken.sources.per_rank)
        encoded = codec.encode_rank({**taken.rank, "per_rank": per_rank}, gang.rank)
        return encoded, str(len(encoded)).encode()

    encoded, lengths = gang.exchange(whole)
    return gang.gather(encoded, [int(length) for length in lengths])


def _identity(sources: Sources) -> tuple[int, int]:
    return id(bare(sources.model)), id(bare_optimizer(sources.optimizer))


def _take(sources: Sources, rank: int) -> Taken:
    """Take what can be taken without the other ranks."""
    optimizer = None
    if is_zero_redundancy(sources.optimizer):
        try_state(sources.optimizer)
    elif sources.optimizer is not None:
        optimizer = take_optimizer(sources.optimizer, sources.model)
    per_rank = {name: sources.per_rank[name] for name in sorted(sources.per_rank)}
    states = _states(per_rank)
    rank_state = {"random": take_random(), "per_rank": states, "classes": classes(sources.per_rank)}
    spread = any(map(is_zero_redundancy, per_rank.values())) or shards_in(states, "per_rank")
    encoded = None if spread else codec.encode_rank(rank_state, rank)
    return Taken(
        sources, take_model(sources.model), optimizer, _states(sources.other), rank_state, encoded
    )


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


def _all_of(states: Mapping[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states with all that other ranks hold of them, on rank 0; a collective."""
    whole: dict[str, Any] = gathered(dict(states))
    for name in sorted(objects):
        if is_zero_redundancy(objects[name]) and consolidate(objects[name]):
            whole[name] = take_object(objects[name])
    return whole
