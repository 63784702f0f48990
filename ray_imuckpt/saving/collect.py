"""What the ranks of a gang do together for a save: agree, capture, commit. Collectives."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

from ray_imuckpt._version import __version__
from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits, agreed
from ray_imuckpt.encoding import tree
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.manifest import Ancestor, Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import branch, commit
from ray_imuckpt.state.model import ModelState, take_model
from ray_imuckpt.state.objects import classes, is_stateful, take_object
from ray_imuckpt.state.optimizer import take_optimizer
from ray_imuckpt.state.random_state import take_random
from ray_imuckpt.state.sharding import consolidate, gathered, is_zero_redundancy, try_state
from ray_imuckpt.state.wrappers import bare, bare_optimizer
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Label:
    """What a checkpoint is to be known by.

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
class _Taken:
    """The state of this rank, before anything of it was asked of the others."""

    model: ModelState
    optimizer: dict[str, Any] | None
    other: Mapping[str, Any]
    own: dict[str, Any]


def capture(
    gang: Gang,
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    log: Any,
    per_rank: Mapping[str, Any],
    other: Mapping[str, Any],
) -> codec.TrainingState:
    """Take the state on every rank; what is returned is complete on rank 0.

    What is replicated is compared between the ranks when a model and an optimizer are taken for the
    first time in a run.

    Raises:
        UnsupportedStateError: On every rank, when one rank's own state cannot be stored.
        StateMismatchError: On every rank, when the ranks' states do not make one checkpoint.
    """
    these = id(bare(model)), id(bare_optimizer(optimizer))

    def local() -> tuple[_Taken, Traits]:
        taken = _take(model, optimizer, per_rank, other)
        if gang.world_size == 1:
            return taken, Traits()
        shards = traits.of_shards({"other": taken.other, "per_rank": taken.own["per_rank"]})
        tensors = traits.Shapes(taken.model, taken.optimizer, shards)
        kept = traits.fingerprints(other, taken.other, tensors=run.compared != these)
        if run.compared == these:
            return taken, Traits(tensors=tensors, may_differ=kept)
        kept |= traits.buffer_values(model, per_rank, taken.model)
        values = traits.replicated_values(model, optimizer, per_rank, taken.model, taken.optimizer)
        return taken, Traits(tensors=tensors, values=values, may_differ=kept)

    # What a rank may fail at alone, and whatever differs, comes first: in a gathering of sharded
    # tensors the others would wait for it.
    taken = agreed(gang, "checkpoint", local, run.differing)
    run.compared = these

    def shared() -> tuple[codec.TrainingState, bytes]:
        state = codec.TrainingState(
            model=replace(
                taken.model,
                tensors=gathered(dict(taken.model.tensors)),
                extra=gathered(dict(taken.model.extra)),
            ),
            optimizer=gathered(taken.optimizer),
            log=[] if log is None else log,
            other=_all_of(taken.other, other),
            objects=[name for name, value in other.items() if is_stateful(value)],
            ranks=[],
            classes=classes(other),
        )
        if optimizer is not None and is_zero_redundancy(optimizer) and consolidate(optimizer):
            state = replace(state, optimizer=take_optimizer(optimizer, model))
        own = {**taken.own, "per_rank": _all_of(taken.own["per_rank"], per_rank)}
        return state, codec.encode_rank(own, gang.rank)

    state, mine = gang.run_all(shared)
    return replace(state, ranks=gang.gather(mine))


def _take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    per_rank: Mapping[str, Any],
    other: Mapping[str, Any],
) -> _Taken:
    """Take what can be taken without the other ranks."""
    taken = None
    if is_zero_redundancy(optimizer):
        try_state(optimizer)
    elif optimizer is not None:
        taken = take_optimizer(optimizer, model)
    states = _states({name: per_rank[name] for name in sorted(per_rank)})
    own = {"random": take_random(), "per_rank": states, "classes": classes(per_rank)}
    return _Taken(take_model(model), taken, _states(other), own)


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


def job(
    storage: Storage,
    run: Run,
    plan: codec.Plan,
    label: Label,
    world_size: int,
) -> Callable[[], Manifest]:
    """The part of a save that needs no gang: lay out, write, commit. Runs on rank 0, any thread.

    Args:
        storage: The directory of the checkpoints.
        run: What the process remembers; its parent becomes the committed checkpoint.
        plan: What to store, its tensors as they are to be written.
        label: What the checkpoint is to be known by.
        world_size: How many ranks the gang has.
    """

    def run_job() -> Manifest:
        parts = codec.layout(plan)
        undo: Callable[[], None] | None = None

        def guard() -> int:
            nonlocal undo
            undo = branch.prepare(storage, run, label.epoch)
            return run.branch

        try:
            committed = commit.commit(storage, _draft(run, label, world_size), parts, run, guard)
        except commit.UnknownOutcomeError:
            run.branch_begun = True  # as if it were committed: the record must stand
            raise
        except Exception:
            if undo is not None:
                _put_back(undo, storage)
            raise
        run.branch_begun, run.parent = True, committed
        branch.confirm(storage, run, committed.epoch)
        return committed

    return run_job


def _put_back(undo: Callable[[], None], storage: Storage) -> None:
    """Nothing was committed, so nothing is left behind: "the last" is what it was."""
    try:
        undo()
    except Exception as error:  # noqa: BLE001 - the save's own error counts
        logger.warning(
            "%s could not be put back after a save that failed (%s): until this run saves, the "
            'epochs after the one it continued from are not "the last". Ask for them by number.',
            join(storage.url, paths.LINEAGE),
            error,
        )


def _draft(run: Run, label: Label, world_size: int) -> Manifest:
    parent = run.parent
    ancestors = parent.ancestors if parent else ()
    if parent and parent.run_id != run.id:
        ancestors = (*ancestors, Ancestor(parent.run_id, parent.epoch))
    return Manifest(
        epoch=label.epoch,
        step=label.step,
        run_id=run.id,
        save_id=paths.new_save_id(),
        parent=parent.origin if parent else None,
        ancestors=ancestors,
        world_size=world_size,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        versions={
            "ray_imuckpt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        metrics=tree.encode(label.metrics or {}, {}, "metrics"),
        files=(),
        branch=0,
    )
