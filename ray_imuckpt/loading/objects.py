"""The objects passed to ``start``: what they must be, putting them back, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.state.names import names_of
from ray_imuckpt.state.objects import (
    apply_object,
    check_class,
    check_object,
    is_stateful,
    keep,
    may_be_sharded,
)
from ray_imuckpt.state.random_state import is_generator, seed_generator
from ray_imuckpt.state.wrappers import bare_optimizer


@dataclass(frozen=True)
class Targets:
    """The live objects that a checkpoint is put into."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    other: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | str | None = None

    @property
    def objects(self) -> dict[str, Any]:
        """Those in `other` that are restored in place."""
        return {name: value for name, value in self.other.items() if is_stateful(value)}

    def move(self) -> None:
        """Move the model to where it is wanted."""
        if self.device is not None:
            self.model.to(self.device)


def check_objects(
    loaded: LoadedCheckpoint, targets: Targets, gang: Gang, *, strict: bool
) -> LeftOut:
    """Raise `StateMismatchError` unless what was saved fits all objects, as far as can be told.

    Returns:
        What is left as it is; nothing when `strict`.
    """
    missing = [name for name in targets.objects if name not in loaded.objects]
    partly: list[LeftOut] = []
    for name, target in _optimizers_first(targets.objects):
        if name in loaded.objects:
            if strict:
                check_class(target, loaded.classes.get(name), name)
            partly.append(check_object(target, loaded.other[name], name, strict=strict))
    if gang.rank < len(loaded.ranks):
        saved = saved_per_rank(loaded, gang)
        classes = loaded.ranks[gang.rank].get("classes", {})
        missing += [f"per_rank[{name!r}]" for name in targets.per_rank if name not in saved]
        for name, target in _optimizers_first(targets.per_rank):
            if name in saved:
                shown = f"per_rank[{name!r}]"
                if strict:
                    check_class(target, classes.get(name), shown)
                partly.append(check_object(target, saved[name], shown, strict=strict))
    if missing and strict:
        raise StateMismatchError(
            "Objects passed to start() were not saved with this checkpoint.",
            missing=missing,
            url=loaded.url,
            epoch=loaded.epoch,
            hint="Leave them out, or pass strict=False to leave them as they are.",
        )
    return LeftOut(
        (*missing, *(name for part in partly for name in part.missing)),
        tuple(name for part in partly for name in part.unexpected),
    )


def _optimizers_first(objects: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the objects, optimizers before those that hang on them, a scheduler for example."""
    return sorted(objects.items(), key=lambda item: not isinstance(item[1], torch.optim.Optimizer))


class Objects:
    """The objects that are restored beside model and optimizer, and the way back.

    Args:
        loaded: The checkpoint.
        targets: The live objects.
        gang: The gang.
        layouts: How parameters lay in memory when they were saved.
    """

    def __init__(
        self, loaded: LoadedCheckpoint, targets: Targets, gang: Gang, layouts: SavedLayouts
    ) -> None:
        self._gang = gang
        self._loaded = loaded
        self._layouts = layouts
        found = {
            name: (target, loaded.other[name])
            for name, target in sorted(targets.objects.items())  # the same order on every rank
            if name in loaded.objects
        }
        saved = saved_per_rank(loaded, gang)
        per_rank = sorted(targets.per_rank.items())
        found |= {f"per_rank[{n!r}]": (target, saved[n]) for n, target in per_rank if n in saved}
        # What the model or the optimizer holds as well: each rank's own counts, and comes last.
        self._late = {n: found.pop(n) for n in list(found) if self._is_of_model(n, targets)}
        # Models and optimizers after the others: they are not all put back when one refuses.
        self._steps = [
            {name: pair for name, pair in found.items() if may_be_sharded(pair[0]) == large}
            for large in (False, True)
        ]
        self._new = {}
        if gang.rank >= len(loaded.ranks):
            self._new = {n: g for n, g in targets.per_rank.items() if is_generator(g)}
        self._undo: dict[str, Callable[[], None] | None] = {}
        self._begun: list[str] = []
        self._any = bool(targets.objects or targets.per_rank)  # the same on every rank

    def put_back(self) -> None:
        """Restore them, on every rank; a collective, unless there are none on any rank."""
        if not self._any:
            return

        def look() -> None:
            steps = (*self._steps, self._late)
            everything = {n: target for step in steps for n, (target, _) in step.items()}
            self._undo = {name: keep(target) for name, target in everything.items()}
            self._undo |= {f"per_rank[{name!r}]": keep(g) for name, g in self._new.items()}

        self._gang.run_all(look)
        for step in self._steps:
            self._gang.run_all(lambda: self._apply_all(step))  # noqa: B023 - used up at once
        for name, generator in self._new.items():
            self._begun.append(f"per_rank[{name!r}]")
            seed_generator(generator, self._loaded.ranks[0]["random"], self._gang.rank, name)

    def put_back_late(self) -> None:
        """Restore what must not be overwritten by the model's and the optimizer's state."""
        self._apply_all(self._late)

    @staticmethod
    def _is_of_model(name: str, targets: Targets) -> bool:
        for key, value in targets.per_rank.items():
            if name == f"per_rank[{key!r}]":
                if isinstance(value, nn.Module):
                    return bool(names_of(targets.model, [value]))
                return bare_optimizer(value) is bare_optimizer(targets.optimizer)
        return False

    def _apply_all(self, step: Mapping[str, tuple[Any, Any]]) -> None:
        for name, (target, state) in step.items():
            self._begun.append(name)
            self._apply(name, target, state)

    def _apply(self, name: str, target: Any, state: Any) -> None:
        """Put one object back; what it raises is an error that names it."""
        try:
            apply_object(target, state, self._layouts)
        except ImuckptError:
            raise
        except Exception as error:
            raise StateMismatchError(
                f"{name!r}, a {type(target).__name__}, did not take the state that was saved: "
                f"{type(error).__name__}: {error}",
                url=self._loaded.url,
                epoch=self._loaded.epoch,
                hint="Build it as it was when it was saved, or leave it out of start().",
            ) from error

    def undo(self, error: Exception) -> None:
        """Put them back as they were, on every rank; a collective.

        Args:
            error: Why; an error of this package is told to say so where that was not possible.

        Raises:
            ImuckptError: `error` is another one, and not all could be put back.
        """
        left = []
        for name in self._begun:
            try:
                undo = self._undo[name]
                if undo is None:
                    left.append(name)
                else:
                    undo()
            except Exception:  # noqa: BLE001 - the error is the one that led here
                left.append(name)
        told = [json.loads(data) for data in self._gang.all_gather(json.dumps(left).encode())]
        names = sorted({name for theirs in told for name in theirs})
        if not names:
            return
        partly = f"{', '.join(names)} may hold a part of epoch {self._loaded.epoch}: build anew."
        if isinstance(error, ImuckptError):
            error.hint = f"{error.hint} {partly}" if error.hint else partly
            return
        raise ImuckptError(
            f"Restoring was broken off by {type(error).__name__}: {error}",
            url=self._loaded.url,
            epoch=self._loaded.epoch,
            hint=partly,
        ) from error


def saved_per_rank(loaded: LoadedCheckpoint, gang: Gang) -> dict[str, Any]:
    """What this rank's ``per_rank`` objects were, if there was such a rank."""
    if gang.rank >= len(loaded.ranks):
        return {}
    saved: dict[str, Any] = loaded.ranks[gang.rank]["per_rank"]
    return saved
