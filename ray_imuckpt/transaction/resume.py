"""Which checkpoint a run continues from (rank 0 decides for all), and putting it back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ray_imuckpt import layout
from ray_imuckpt.arguments import LAST, NONE
from ray_imuckpt.capture.model import apply_model, check_model
from ray_imuckpt.capture.objects import apply_object, check_object, is_stateful
from ray_imuckpt.capture.optimizer import apply_optimizer, check_optimizer
from ray_imuckpt.capture.random_state import apply_random, seed_new_rank
from ray_imuckpt.catalog import Catalog
from ray_imuckpt.errors import CorruptCheckpointError, StateMismatchError
from ray_imuckpt.manifest import Manifest
from ray_imuckpt.ranks import Ranks, on_rank_zero, together
from ray_imuckpt.storage import Storage
from ray_imuckpt.transaction.restore import LoadedCheckpoint, open_checkpoint, read_all

logger = logging.getLogger("ray_imuckpt")


def find(
    ranks: Ranks, storage: Storage, choice: str | int, run_id: str | None, *, optimizer: bool
) -> LoadedCheckpoint | None:
    """The checkpoint to continue from, all of it read and verified; a collective.

    A damaged one is passed over for the newest sound one before it, with a warning, unless it was
    asked for by its number.

    Args:
        ranks: The gang.
        storage: The directory of the checkpoints; used on rank 0 only.
        choice: `LAST`, `NONE` or an epoch.
        run_id: The surroundings' name of this run, which a restarted gang shares; then the run's
            own newest checkpoint goes before `choice`.
        optimizer: Whether the optimizer's part is needed.

    Returns:
        ``None`` to begin from scratch.

    Raises:
        CorruptCheckpointError: The epoch asked for, or every checkpoint there is, is damaged.
        UnsupportedFormatError: The checkpoint to continue from was written by a newer release.
    """
    catalog = Catalog(storage)
    damaged: list[str] = []
    below: int | None = None

    def restarted() -> bytes:
        return b"1" if run_id is not None and _own_newest(catalog, run_id) else b""

    if on_rank_zero(ranks, restarted):
        choice = LAST  # a restarted gang goes on where it was, whatever it was first told
    while True:
        here = below

        def pick() -> bytes:
            return _pick(catalog, choice, here, damaged=bool(damaged))  # noqa: B023

        told = on_rank_zero(ranks, pick)
        if not told:
            return None
        exact, data = told[:1] == b"!", told[1:]
        manifest = Manifest.from_bytes(data, storage.url)
        directory = layout.checkpoint_name(manifest.epoch)
        loaded = open_checkpoint(storage, directory, manifest, ranks)
        try:
            read_all(loaded, optimizer=optimizer)
        except CorruptCheckpointError as error:
            if exact:
                raise
            damaged.append(str(error))
            _warn(ranks, "Passing over a damaged checkpoint: %s", error)
            below = manifest.epoch
            continue
        return loaded


def _pick(catalog: Catalog, choice: str | int, below: int | None, *, damaged: bool) -> bytes:
    """A manifest to try, after ``!`` if no other will do, after ``?`` if others may; b"": none."""
    if choice == NONE:
        return b""
    if isinstance(choice, int) and below is None:
        if catalog.is_committed(choice):
            return b"!" + catalog.manifest(choice).to_bytes()
        logger.warning(
            "There is no checkpoint of epoch %d in %s; looking for the last one before it.",
            choice,
            catalog.url(choice).rsplit("/", 1)[0],
        )
        below = choice
    for epoch in catalog.live(below):
        try:
            return b"?" + catalog.manifest(epoch).to_bytes()
        except CorruptCheckpointError as error:
            damaged = True
            logger.warning("Passing over a damaged checkpoint: %s", error)
    if damaged:
        raise CorruptCheckpointError(
            "Every checkpoint that could be continued from is damaged.",
            url=catalog.url(0).rsplit("/", 1)[0],
            hint='Restore the directory from a copy, or begin anew with continue_from="none".',
        )
    if isinstance(choice, int):
        logger.warning("There is no checkpoint before epoch %d; beginning from scratch.", choice)
    return b""


def _own_newest(catalog: Catalog, run_id: str) -> bool:
    for epoch in catalog.live():
        try:
            return catalog.manifest(epoch).run_id == run_id
        except CorruptCheckpointError:
            continue
    return False


@dataclass(frozen=True)
class Targets:
    """The live objects that a checkpoint is put into."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    other: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objects(self) -> dict[str, Any]:
        """Those in `other` that are restored in place."""
        return {name: value for name, value in self.other.items() if is_stateful(value)}


def apply(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks, *, strict: bool) -> None:
    """Put a checkpoint into live objects on every rank; a collective.

    Raises:
        StateMismatchError: Something does not fit; then nothing was changed, on any rank.
    """
    together(ranks, lambda: _check(loaded, targets, ranks, strict=strict))
    together(ranks, lambda: _apply(loaded, targets, ranks))


def _check(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks, *, strict: bool) -> None:
    check_model(targets.model, loaded.model, loaded.model_extra, strict=strict)
    if targets.optimizer is not None:
        if loaded.optimizer is None:
            raise StateMismatchError(
                "The checkpoint holds no optimizer state.",
                url=loaded.url,
                epoch=loaded.epoch,
                hint="Pass optimizer=None to start() to begin with a fresh optimizer.",
            )
        check_optimizer(targets.optimizer, targets.model, loaded.optimizer)
    for name, target in targets.objects.items():
        if name in loaded.objects:
            check_object(target, loaded.other[name], name)
    missing = [name for name in targets.objects if name not in loaded.objects]
    if ranks.rank < len(loaded.ranks):
        saved = loaded.ranks[ranks.rank]["per_rank"]
        missing += [f"per_rank[{name!r}]" for name in targets.per_rank if name not in saved]
    if missing and strict:
        raise StateMismatchError(
            "Objects passed to start() were not saved with this checkpoint.",
            missing=missing,
            url=loaded.url,
            epoch=loaded.epoch,
            hint="Leave them out, or pass strict=False to leave them as they are.",
        )


def _apply(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks) -> None:
    for name, target in sorted(targets.objects.items()):  # the same order on every rank
        if name in loaded.objects:
            apply_object(target, loaded.other[name])
    mine = loaded.ranks[ranks.rank] if ranks.rank < len(loaded.ranks) else None
    for name, target in targets.per_rank.items():
        if mine is not None and name in mine["per_rank"]:
            apply_object(target, mine["per_rank"][name])
    # After the objects, which can only be tried: the model is not changed when one of them refuses.
    apply_model(targets.model, loaded.model, loaded.model_extra)
    if targets.optimizer is not None and loaded.optimizer is not None:
        apply_optimizer(targets.optimizer, targets.model, loaded.optimizer)
    if ranks.world_size != len(loaded.ranks):
        _warn(
            ranks,
            "The checkpoint was made by %d rank(s), this gang has %d: what is the same on all "
            "ranks is exact, random state and per_rank objects of new ranks begin anew.",
            len(loaded.ranks),
            ranks.world_size,
        )
    if mine is not None:
        apply_random(mine["random"])
    else:
        seed_new_rank(loaded.ranks[0]["random"], ranks.rank)


def _warn(ranks: Ranks, message: str, *arguments: object) -> None:
    if ranks.rank == 0:
        logger.warning(message, *arguments)
