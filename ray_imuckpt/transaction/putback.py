"""Putting a checkpoint into live objects, on every rank."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ray_imuckpt.capture.model import LiveModel
from ray_imuckpt.capture.objects import apply_object, check_object, is_stateful
from ray_imuckpt.capture.optimizer import LiveOptimizer
from ray_imuckpt.capture.random_state import apply_random, seed_new_rank
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.ranks import Ranks, together
from ray_imuckpt.transaction.restore import LoadedCheckpoint

logger = logging.getLogger("ray_imuckpt")


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


def put_back(
    loaded: LoadedCheckpoint,
    targets: Targets,
    ranks: Ranks,
    touched: set[str],
    *,
    strict: bool,
    keep_options: bool = False,
) -> None:
    """Read, check, and put one checkpoint into live objects; a collective.

    Args:
        loaded: The checkpoint.
        targets: The live objects.
        ranks: The gang.
        touched: What a damaged checkpoint before this one has left its traces in; what this one
            will is added.
        strict: See `ray_imuckpt.transaction.resume.restore`.
        keep_options: Whether the optimizer keeps its own learning rate and other options.
    """
    loaded.prepare(optimizer=targets.optimizer is not None)

    def check() -> tuple[LiveModel, LiveOptimizer | None]:
        live = _check(loaded, targets, ranks, strict=strict)
        held = _held(loaded, targets, ranks)
        if touched - held:
            raise StateMismatchError(
                "A newer checkpoint turned out to be damaged after a part of it had been restored; "
                "this one could not make good for all of that.",
                missing=sorted(touched - held),
                url=loaded.url,
                epoch=loaded.epoch,
                hint=f"Build the objects anew and start with continue_from={loaded.epoch}.",
            )
        touched.update(held)
        return live

    model, optimizer = together(ranks, check)
    # Objects first, which can only be tried: the model is not changed when one of them refuses.
    together(ranks, lambda: _apply_objects(loaded, targets, ranks))
    tensors, extra = loaded.fill_model(
        together(ranks, lambda: model.memory(loaded.model_places[0]))
    )
    state = None
    if optimizer is not None:
        state = loaded.fill_optimizer(
            together(ranks, lambda: optimizer.memory(loaded.optimizer_places or {}))
        )

    def apply() -> None:
        model.load(tensors, extra)
        if optimizer is not None and state is not None:
            optimizer.load(state, keep_options=keep_options)
        _apply_random(loaded, targets, ranks)

    together(ranks, apply)


def _held(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks) -> set[str]:
    """What of the live objects this checkpoint puts back."""
    tensors, extra = loaded.model_places
    held = {f"model.{name}" for name in (*tensors, *extra)}
    held |= {name for name in targets.objects if name in loaded.objects}
    if ranks.rank < len(loaded.ranks):
        saved = loaded.ranks[ranks.rank]["per_rank"]
        held |= {f"per_rank[{name!r}]" for name in targets.per_rank if name in saved}
    return held


def _check(
    loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks, *, strict: bool
) -> tuple[LiveModel, LiveOptimizer | None]:
    model = LiveModel(targets.model)
    model.check(*loaded.model_places, strict=strict)
    optimizer = None
    if targets.optimizer is not None:
        if loaded.optimizer_places is None:
            raise StateMismatchError(
                "The checkpoint holds no optimizer state.",
                url=loaded.url,
                epoch=loaded.epoch,
                hint="Pass optimizer=None to start() to begin with a fresh optimizer.",
            )
        optimizer = LiveOptimizer(targets.optimizer, targets.model)
        optimizer.check(loaded.optimizer_places)
    for name, target in targets.objects.items():
        if name in loaded.objects:
            check_object(target, loaded.other[name], name)
    missing = [name for name in targets.objects if name not in loaded.objects]
    if ranks.rank < len(loaded.ranks):
        saved = loaded.ranks[ranks.rank]["per_rank"]
        missing += [f"per_rank[{name!r}]" for name in targets.per_rank if name not in saved]
        for name, target in targets.per_rank.items():
            if name in saved:
                check_object(target, saved[name], f"per_rank[{name!r}]")
    if missing and strict:
        raise StateMismatchError(
            "Objects passed to start() were not saved with this checkpoint.",
            missing=missing,
            url=loaded.url,
            epoch=loaded.epoch,
            hint="Leave them out, or pass strict=False to leave them as they are.",
        )
    return model, optimizer


def _apply_objects(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks) -> None:
    for name, target in sorted(targets.objects.items()):  # the same order on every rank
        if name in loaded.objects:
            apply_object(target, loaded.other[name])
    if ranks.rank < len(loaded.ranks):
        saved = loaded.ranks[ranks.rank]["per_rank"]
        for name, target in targets.per_rank.items():
            if name in saved:
                apply_object(target, saved[name])


def _apply_random(loaded: LoadedCheckpoint, targets: Targets, ranks: Ranks) -> None:
    before, now = len(loaded.ranks), ranks.world_size
    if before != now:
        gone = f" What ranks {now} to {before - 1} held is not used." if now < before else ""
        new = (
            f" Ranks {before} to {now - 1} get random state derived from it."
            if now > before
            else ""
        )
        mine = ", ".join(sorted(targets.per_rank))
        objects = f" Of per_rank ({mine}) the same holds; new ranks begin anew." if mine else ""
        warn(
            ranks,
            "The checkpoint was made by %d rank(s), this gang has %d. Model, optimizer, log and "
            "other are exact; the run is another than with the same size.%s%s%s",
            before,
            now,
            gone,
            new,
            objects,
        )
    if ranks.rank >= before:
        seed_new_rank(loaded.ranks[0]["random"], ranks.rank)
        return
    missing = apply_random(loaded.ranks[ranks.rank]["random"])
    if missing:
        logger.warning(
            "The checkpoint holds the random state of %d CUDA device(s) that rank %d does not have "
            "now: random numbers drawn there will differ.",
            missing,
            ranks.rank,
        )


def warn(ranks: Ranks, message: str, *arguments: object) -> None:
    """Warn once for the whole gang."""
    if ranks.rank == 0:
        logger.warning(message, *arguments)
