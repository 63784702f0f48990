"""Putting a checkpoint into live objects, on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import TensorKey
from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.objects import Objects, Targets, check_objects, saved_per_rank
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut, LiveModel
from ray_imuckpt.state.optimizer import LiveOptimizer
from ray_imuckpt.state.random_state import apply_random, check_random, missing_cuda, seed_new_rank

logger = logging.getLogger("ray_imuckpt")


def put_back(
    loaded: LoadedCheckpoint,
    targets: Targets,
    gang: Gang,
    touched: set[str],
    *,
    strict: bool,
    keep_options: bool = False,
) -> None:
    """Read, check, and put one checkpoint into live objects; a collective.

    Args:
        loaded: The checkpoint.
        targets: The live objects.
        gang: The gang.
        touched: What a damaged checkpoint before this one has left its traces in; what this one
            will is added.
        strict: See `ray_imuckpt.loading.selection.restore`.
        keep_options: Whether the optimizer keeps its own learning rate and other options.
    """
    loaded.prepare(optimizer=targets.optimizer is not None)
    model, optimizer = gang.run_all(
        lambda: _check_all(loaded, targets, gang, touched, strict=strict)
    )
    layouts = _saved_layouts(loaded, targets, gang)
    objects = Objects(loaded, targets, gang, layouts)
    try:
        # Objects first, which can only be tried: the model is not changed when one refuses.
        objects.put_back()
        if targets.device is not None:
            gang.run_all(targets.move)
            model = gang.run_all(lambda: LiveModel(targets.model))
        _put_back_tensors(
            loaded, targets, gang, model, optimizer, layouts, objects, keep_options=keep_options
        )
    except Exception as error:
        objects.undo(error)
        raise
    if gang.rank == 0:
        tell_left_out(loaded)


def tell_left_out(loaded: LoadedCheckpoint) -> None:
    """Warn of what ``strict=False`` has left out, by name."""
    for names, what in (
        (loaded.left_out.missing, "not in the checkpoint, and left as built"),
        (loaded.left_out.unexpected, "in the checkpoint, and not used"),
    ):
        if names:
            logger.warning("%s: %d name(s) %s: %s.", loaded.url, len(names), what, ", ".join(names))


def _tell_of_layouts(changed: set[str], gang: Gang) -> None:
    if not changed:
        return
    warn(
        gang,
        "%s and %d more parameters lie otherwise in memory than when they were saved "
        "(channels_last, transposed), and the optimizer's state was laid out as they are now. "
        "Convert the model before start(), as it was when it was saved: else the run is not "
        "the same to the last bit, and converting it later leaves the state behind.",
        min(changed),
        len(changed) - 1,
    )


def _saved_layouts(loaded: LoadedCheckpoint, targets: Targets, gang: Gang) -> SavedLayouts:
    saved = saved_per_rank(loaded, gang)
    others = [(t, loaded.other[n]) for n, t in targets.objects.items() if n in loaded.objects]
    others += [(t, saved[n]) for n, t in targets.per_rank.items() if n in saved]
    modules = [(target, state) for target, state in others if isinstance(target, nn.Module)]
    return SavedLayouts([(targets.model, loaded.model_places[0]), *modules])


def _put_back_tensors(
    loaded: LoadedCheckpoint,
    targets: Targets,
    gang: Gang,
    model: LiveModel,
    optimizer: LiveOptimizer | None,
    layouts: SavedLayouts,
    objects: Objects,
    *,
    keep_options: bool,
) -> None:
    """What has large tensors, and at the very end the random generators."""

    def memory() -> dict[TensorKey, torch.Tensor]:
        live = model.memory(loaded.model_places[0])
        if optimizer is not None:
            live |= optimizer.memory(loaded.optimizer_places or {})
        return live

    live = gang.run_all(memory)
    if optimizer is None:
        tensors, extra = loaded.fill_model(live)
        state = None
    else:
        tensors, extra, state = loaded.fill_both(live)

    def apply() -> None:
        model.load(tensors, extra, loaded.model_versions)
        if optimizer is not None and state is not None:
            optimizer.load(state, layouts, keep_options=keep_options)
        objects.put_back_late()
        _apply_random(loaded, targets, gang)

    gang.run_all(lambda: _or_say_partly(apply, loaded, gang))
    _tell_of_layouts(layouts.changed, gang)


def _or_say_partly(apply: Callable[[], None], loaded: LoadedCheckpoint, gang: Gang) -> None:
    """What fails here fails behind all checks, when the model's old bytes are gone."""
    try:
        apply()
    except Exception as error:
        raise ImuckptError(
            f"Restoring was broken off by {type(error).__name__}: {error}",
            url=loaded.url,
            epoch=loaded.epoch,
            rank=gang.rank,
            hint="Model and optimizer may hold a part of this epoch: do not go on with them, build "
            "them anew.",
        ) from error


def _held(loaded: LoadedCheckpoint, targets: Targets, gang: Gang) -> set[str]:
    """What of the live objects this checkpoint puts back."""
    tensors, extra = loaded.model_places
    held = {f"model.{name}" for name in (*tensors, *extra)}
    held |= {name for name in targets.objects if name in loaded.objects}
    saved = saved_per_rank(loaded, gang)
    return held | {f"per_rank[{name!r}]" for name in targets.per_rank if name in saved}


def _check_all(
    loaded: LoadedCheckpoint,
    targets: Targets,
    gang: Gang,
    touched: set[str],
    *,
    strict: bool,
) -> tuple[LiveModel, LiveOptimizer | None]:
    """As `_check`, and whether it makes good for a damaged one before it; see `put_back`."""
    try:
        live = _check(loaded, targets, gang, strict=strict)
    except StateMismatchError as error:
        if touched:
            error.message += (
                " And a newer checkpoint turned out to be damaged after a part of it had been "
                "restored: model and optimizer may hold that part, build them anew."
            )
        raise
    held = _held(loaded, targets, gang)
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


def _check(
    loaded: LoadedCheckpoint, targets: Targets, gang: Gang, *, strict: bool
) -> tuple[LiveModel, LiveOptimizer | None]:
    model = LiveModel(targets.model)
    left = model.check(*loaded.model_places, loaded.model_versions, strict=strict)
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
    objects = check_objects(loaded, targets, gang, strict=strict)
    loaded.left_out = LeftOut(left.missing + objects.missing, left.unexpected + objects.unexpected)
    _check_random(loaded, gang, strict=strict)
    return model, optimizer


def _check_random(loaded: LoadedCheckpoint, gang: Gang, *, strict: bool) -> None:
    if gang.rank >= len(loaded.ranks):
        return
    state = loaded.ranks[gang.rank]["random"]
    check_random(state, gang.rank)
    same_size = gang.world_size == len(loaded.ranks)
    if strict and same_size and state.get("cuda") and not torch.cuda.is_available():
        raise StateMismatchError(
            f"The checkpoint holds the random state of {len(state['cuda'])} CUDA device(s), and "
            "this rank has none.",
            url=loaded.url,
            epoch=loaded.epoch,
            rank=gang.rank,
            hint="Run it where there is a GPU. To go on without, with other random numbers, pass "
            "strict=False.",
        )


def _apply_random(loaded: LoadedCheckpoint, targets: Targets, gang: Gang) -> None:
    before, now = len(loaded.ranks), gang.world_size
    if before != now:
        gone = f" What ranks {now} to {before - 1} held is not used." if now < before else ""
        new = (
            f" Gang {before} to {now - 1} get random state derived from it." if now > before else ""
        )
        mine = ", ".join(sorted(targets.per_rank))
        objects = (
            f" Of per_rank ({mine}) the same holds; new ranks begin with theirs as built, "
            "generators seeded by that state and the rank."
        ) * bool(mine)
        warn(
            gang,
            "The checkpoint was made by %d rank(s), this gang has %d. Model, optimizer, log and "
            "other are exact; the run is another than with the same size.%s%s%s",
            before,
            now,
            gone,
            new,
            objects,
        )
    if gang.rank >= before:
        seed_new_rank(loaded.ranks[0]["random"], gang.rank)
        return
    apply_random(loaded.ranks[gang.rank]["random"])
    missing = missing_cuda(loaded.ranks[gang.rank]["random"])
    if missing:
        logger.warning(
            "The checkpoint holds the random state of %d CUDA device(s) that rank %d does not have "
            "now: random numbers drawn there will differ.",
            missing,
            gang.rank,
        )


def warn(gang: Gang, message: str, *arguments: object) -> None:
    """Warn once for the whole gang."""
    if gang.rank == 0:
        logger.warning(message, *arguments)
