"""What the ranks of a gang do together for a save: agree, capture, commit. Collectives."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

from ray_imuckpt import chunks, codec, layout, tree
from ray_imuckpt._version import __version__
from ray_imuckpt.capture.model import take_model
from ray_imuckpt.capture.objects import classes, is_stateful, may_be_sharded, take_object
from ray_imuckpt.capture.optimizer import take_optimizer
from ray_imuckpt.capture.random_state import take_random
from ray_imuckpt.catalog import Catalog
from ray_imuckpt.errors import ImuckptError, SaveFailedError, UnsupportedStateError
from ray_imuckpt.manifest import Ancestor, Manifest
from ray_imuckpt.ranks import Ranks, together
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction import save

logger = logging.getLogger("ray_imuckpt")

_TOLD: set[str] = set()  # names that were warned of in this process


@dataclass
class Run:
    """What a process remembers of its run between saves.

    Attributes:
        id: The run's id.
        parent: The checkpoint that training has come from, the newest of this run's if it has one.
        branch_begun: Whether what this run leaves behind has been recorded.
        resumed_from: The epoch that this process continued from.
        foreign: Whether `parent` lies in another directory, so that what this one holds is left.
    """

    id: str
    parent: Manifest | None
    branch_begun: bool
    resumed_from: int | None = None
    foreign: bool = False


def signature(
    model: nn.Module,
    optimizer: Any,
    per_rank: Mapping[str, Any] | None,
    other: Mapping[str, Any],
    epoch: Any,
) -> dict[str, Any]:
    """What must be the same in the calls of all ranks."""
    return {
        "model": type(model).__name__,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "per_rank": sorted(per_rank or {}),
        "keywords": sorted(other),
        "epoch": epoch,
    }


def agree(ranks: Ranks, call: str, mine: dict[str, Any]) -> None:
    """Raise on every rank if the ranks did not call with the same arguments.

    Raises:
        ValueError: It names the argument and both ranks.
    """
    told = [json.loads(data) for data in ranks.all_gather(json.dumps(mine).encode())]
    for rank, theirs in enumerate(told):
        for name in mine:
            if theirs[name] != told[0][name]:
                raise ValueError(
                    f"{call}() was called with different arguments: {name} is {told[0][name]!r} on "
                    f"rank 0 and {theirs[name]!r} on rank {rank}. Every rank passes the same."
                )


def capture(
    ranks: Ranks,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    log: Any,
    per_rank: Mapping[str, Any],
    other: Mapping[str, Any],
) -> codec.TrainingState:
    """Take the state on every rank; what is returned is complete on rank 0.

    Raises:
        UnsupportedStateError: On every rank, when one rank's own state cannot be stored.
    """

    def mine() -> bytes:
        state = {name: take_object(per_rank[name]) for name in sorted(per_rank)}
        mine = {"random": take_random(), "per_rank": state, "classes": classes(per_rank)}
        return codec.encode_rank(mine, ranks.rank)

    blobs = ranks.gather(together(ranks, mine))
    gathered = [name for name in sorted(other) if may_be_sharded(other[name])]

    def local() -> tuple[dict[str, Any], bytes]:
        values = {name: take_object(other[name]) for name in other if name not in gathered}
        return values, b"" if ranks.world_size == 1 else _fingerprints(values)

    # What one rank alone may fail at comes first: it would be missed in a gathering.
    values, fingerprints = together(ranks, local)
    if ranks.world_size > 1:
        _tell_what_differs(ranks.gather(fingerprints))

    def shared() -> codec.TrainingState:
        return codec.TrainingState(
            model=take_model(model),
            optimizer=None if optimizer is None else take_optimizer(optimizer, model),
            log=[] if log is None else log,
            other={**values, **{name: take_object(other[name]) for name in gathered}},
            objects=[name for name, value in other.items() if is_stateful(value)],
            ranks=blobs,
            classes=classes(other),
        )

    return together(ranks, shared)


def _tell_what_differs(gathered: list[bytes]) -> None:
    """Warn of what is passed by keyword and is not the same on every rank; once for each name.

    Rank 0's is stored and given to all: a detector that was fed with each rank's own loss would
    be another one after the restart. Tensors are not compared.

    Args:
        gathered: Every rank's `_fingerprints` on rank 0, nothing elsewhere.
    """
    told = [json.loads(data) for data in gathered]
    for name in sorted(set(told[0]) - _TOLD) if told else ():
        differing = [rank for rank, theirs in enumerate(told) if theirs.get(name) != told[0][name]]
        if differing:
            _TOLD.add(name)
            logger.warning(
                "%r on rank %s is not what it is on rank 0, whose state is stored and will be "
                "restored on every rank. Pass what differs by rank in per_rank; what steers "
                "training (learning rate, stopping) should be the same on all ranks.",
                name,
                ", ".join(map(str, differing)),
            )


def _fingerprints(values: Mapping[str, Any]) -> bytes:
    return json.dumps({name: _fingerprint(value, name) for name, value in values.items()}).encode()


def _fingerprint(value: Any, name: str) -> str:
    try:
        return chunks.checksum([tree.dumps(tree.encode(value, {}, name))])
    except UnsupportedStateError:
        return ""  # whoever stores it will say so


def job(
    storage: Storage,
    run: Run,
    plan: codec.Plan,
    draft: Mapping[str, Any],
) -> Callable[[], Manifest]:
    """The part of a save that needs no gang: lay out, write, commit. Runs on rank 0, any thread.

    Args:
        storage: The directory of the checkpoints.
        run: What the process remembers; its parent becomes the committed checkpoint.
        plan: What to store, its tensors as they are to be written.
        draft: ``epoch``, ``world_size`` and ``metrics``.
    """

    def commit() -> Manifest:
        parts = codec.layout(plan)
        manifest = _draft(run, **draft)
        undo = None if run.branch_begun else _begin_branch(storage, run, manifest.epoch)
        try:
            run.parent = save.commit(storage, manifest, parts, run.parent)
        except save.UnknownOutcomeError:
            run.branch_begun = True  # as if it were committed: the record must stand
            raise
        except Exception:
            if undo is not None:
                _put_back(undo, storage)
            raise
        run.branch_begun = True
        return run.parent

    return commit


def _begin_branch(storage: Storage, run: Run, epoch: int) -> Callable[[], None]:
    try:
        return Catalog(storage).begin_branch(None if run.foreign else run.parent)
    except ImuckptError:
        raise
    except Exception as error:
        raise SaveFailedError(
            "The save failed, nothing was committed: what this run leaves behind could not be "
            f"recorded in {layout.LINEAGE}: {type(error).__name__}: {error}.",
            url=layout.join(storage.url, layout.checkpoint_name(epoch)),
            epoch=epoch,
            hint="Check that the directory can be written and has space, then save again. "
            "Earlier checkpoints are untouched.",
        ) from error


def _put_back(undo: Callable[[], None], storage: Storage) -> None:
    """Nothing was committed, so nothing is left behind: "the last" is what it was."""
    try:
        undo()
    except Exception as error:  # noqa: BLE001 - the save's own error counts
        logger.warning(
            "%s could not be put back after a save that failed (%s): until this run saves, the "
            'epochs after the one it continued from are not "the last". Ask for them by number.',
            layout.join(storage.url, layout.LINEAGE),
            error,
        )


def _draft(run: Run, epoch: int, world_size: int, metrics: dict[str, Any] | None) -> Manifest:
    parent = run.parent
    ancestors = parent.ancestors if parent else ()
    if parent and parent.run_id != run.id:
        ancestors = (*ancestors, Ancestor(parent.run_id, parent.epoch))
    return Manifest(
        epoch=epoch,
        run_id=run.id,
        attempt_id=layout.new_attempt_id(),
        parent=parent.origin if parent else None,
        ancestors=ancestors,
        world_size=world_size,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        versions={
            "ray_imuckpt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        metrics=tree.encode(metrics or {}, {}, "metrics"),
        files=(),
    )
