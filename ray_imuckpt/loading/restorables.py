"""The list that a restore goes through: each live object, with what was saved of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets, in_per_rank
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.random_state import is_generator, seed_generator
from ray_imuckpt.state.restorable import Restorable
from ray_imuckpt.state.restorable_random import RestorableRandom, SeededGenerator
from ray_imuckpt.state.restorables import (
    RestorableModel,
    RestorableObject,
    RestorableOptimizer,
    SavedObject,
)


def restorables(
    loaded: LoadedCheckpoint,
    targets: Targets,
    gang: Gang,
    layouts: SavedLayouts,
    *,
    strict: bool,
    keep_options: bool,
) -> list[Restorable]:
    """Return all that a checkpoint restores on this rank, in the order of the checks.

    Args:
        loaded: The checkpoint.
        targets: The live objects.
        gang: The gang.
        layouts: How parameters lay in memory when they were saved.
        strict: See `ray_imuckpt.loading.selection.restore`.
        keep_options: Whether the optimizer keeps its own learning rate and other options.

    Raises:
        UnsupportedStateError: Names of the model do not lead back to its tensors.
    """
    model, optimizer = targets.model, targets.optimizer
    items: list[Restorable] = [
        RestorableModel(model, loaded.saved_model, targets.device, strict=strict)
    ]
    if optimizer is not None:
        saved = loaded.saved_optimizer
        items.append(
            RestorableOptimizer(optimizer, model, saved, layouts, keep_options=keep_options)
        )
    for name, value in _optimizers_first(targets.objects):
        if name in loaded.objects:
            later = name in targets.later.other
            state = SavedObject(loaded.other[name], loaded.classes.get(name), later)
            items.append(RestorableObject(name, value, state, layouts, strict=strict))
    items += _of_rank(loaded, targets, gang, layouts, strict=strict)
    same_size = gang.world_size == loaded.manifest.world_size
    return [*items, RestorableRandom(loaded.saved_random, needs_cuda=strict and same_size)]


def unsaved(loaded: LoadedCheckpoint, targets: Targets) -> tuple[str, ...]:
    """Return the names of objects that `start` was given and the checkpoint does not hold.

    A rank that the checkpoint does not know begins with its ``per_rank`` objects as built.
    """
    names = [name for name in targets.objects if name not in loaded.objects]
    if loaded.rank_here is not None:
        names += [in_per_rank(name) for name in targets.per_rank if name not in loaded.per_rank]
    return tuple(names)


def saved_layouts(loaded: LoadedCheckpoint, targets: Targets) -> SavedLayouts:
    """Return how the parameters of all live models lay in memory when they were saved."""
    models = [(targets.model, loaded.saved_model.tensors)]
    for values, states in (
        (targets.objects, {n: s for n, s in loaded.other.items() if n in loaded.objects}),
        (targets.per_rank, loaded.per_rank),
    ):
        models += [
            (value, states[name])
            for name, value in values.items()
            if name in states and isinstance(value, nn.Module)
        ]
    return SavedLayouts(models)


def _of_rank(
    loaded: LoadedCheckpoint,
    targets: Targets,
    gang: Gang,
    layouts: SavedLayouts,
    *,
    strict: bool,
) -> Iterator[Restorable]:
    """Yield what is in ``per_rank``: restored, or seeded on a rank that did not save."""
    if loaded.rank_here is None:
        _check_alone(loaded, targets)
        random = loaded.rank_zero["random"]
        for name, value in targets.per_rank.items():
            if is_generator(value) and random is not None:
                seed = partial(seed_generator, value, random, gang.rank, name)
                yield SeededGenerator(in_per_rank(name), value, seed)
        return
    saved, classes = loaded.per_rank, loaded.rank_here.get("classes", {})
    for name, value in _optimizers_first(targets.per_rank):
        if name in saved:
            yield RestorableObject(
                in_per_rank(name),
                value,
                SavedObject(saved[name], classes.get(name), name in targets.later.per_rank),
                layouts,
                strict=strict,
                overlapping=targets.overlaps(value),
            )


def _check_alone(loaded: LoadedCheckpoint, targets: Targets) -> None:
    """Raise where other ranks would restore their parts of an object, and this one has none."""
    spread = sorted(name for name in targets.later.per_rank if name in loaded.rank_zero["per_rank"])
    if spread:
        raise StateMismatchError(
            f"{in_per_rank(spread[0])} is spread over the ranks here, and was saved by "
            f"{loaded.manifest.world_size} rank(s), of which this was none.",
            hint="Continue with as many ranks, or leave it out of start(). What is passed by "
            "keyword, and not in per_rank, continues with any number of ranks.",
        )


def _optimizers_first(objects: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the objects, optimizers before what depends on them, a scheduler for example."""
    return sorted(objects.items(), key=lambda item: not isinstance(item[1], torch.optim.Optimizer))
