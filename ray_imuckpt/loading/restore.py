"""A checkpoint into live objects, on every rank: check → fill → apply → undo.

Four loops over one list of `Restorable`. Nothing live changes before all ranks have checked all of
it. What can be undone is applied before the bytes of model and optimizer are overwritten.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from ray_imuckpt.errors import GangBrokenError, ImuckptError, StateMismatchError, located
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import notices
from ray_imuckpt.loading.restorables import restorables, saved_layouts, unsaved
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.state.restorable import Filled, Memory, Phase, Restorable, all_left_out
from ray_imuckpt.state.restorables import RestorableModel
from ray_imuckpt.units import listed

_PART = "may hold a part of"  # the words by which all hints say so: they travel between ranks


class Restore:
    """The restore of one checkpoint; all ranks make one, and call `run`.

    Args:
        loaded: The checkpoint.
        targets: The live objects.
        gang: The gang.
        overwritten: The names of what damaged checkpoints before this one may have left a part of
            themselves in; what this one overwrites is added.
        strict: See `ray_imuckpt.loading.selection.restore`.
        keep_options: Whether the optimizer keeps its own learning rate and other options.
    """

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        targets: Targets,
        gang: Gang,
        overwritten: set[str],
        *,
        strict: bool,
        keep_options: bool = False,
    ) -> None:
        self._loaded = loaded
        self._targets = targets
        self._gang = gang
        self._overwritten = overwritten
        self._strict = strict
        self._keep_options = keep_options
        self._layouts = SavedLayouts()
        self._restorables: list[Restorable] = []
        self._begun: list[Restorable] = []

    def run(self) -> None:
        """Restore it; a collective.

        Raises:
            StateMismatchError: Something does not fit; nothing is changed, or what was is undone.
            CorruptCheckpointError: Bytes were altered: the objects may hold a part of them.
            ImuckptError: Reading failed, a rank was lost, or an object broke it off; the error says
                which objects may hold a part of the checkpoint.
        """
        gang, loaded = self._gang, self._loaded
        with_optimizer = self._targets.optimizer is not None
        loaded.prepare(optimizer=with_optimizer, later=self._targets.later)
        gang.run_all(self._check)
        try:
            if self._targets.objects or self._targets.per_rank:  # the same on every rank
                gang.run_all(lambda: self._apply(Phase.TRIED))
            filled = loaded.fill(self._make_room, optimizer=with_optimizer)
            gang.run_all(lambda: self._finish(filled()))
        except Exception as error:
            self._undo(error)
            raise
        notices.of_layouts(gang, self._layouts)
        notices.of_gang_size(gang, loaded, self._targets)
        notices.of_devices(gang, loaded)
        if gang.rank == 0:
            notices.of_left_out(loaded)

    # ------------------------------------------------------------------ the four loops

    def _check(self) -> None:
        """Check that all of it fits, and makes good for damaged checkpoints before this one."""
        loaded = self._loaded
        try:
            self._layouts = saved_layouts(loaded, self._targets)
            self._restorables = restorables(
                loaded,
                self._targets,
                self._gang,
                self._layouts,
                strict=self._strict,
                keep_options=self._keep_options,
            )
            parts = [restorable.check() for restorable in self._restorables]
            missing = unsaved(loaded, self._targets)
            if missing and self._strict:
                raise StateMismatchError(
                    "Objects passed to start() were not saved with this checkpoint.",
                    missing=list(missing),
                    hint="Leave them out, or pass strict=False to leave them as they are.",
                )
        except StateMismatchError as error:
            if self._overwritten:
                error.message += (
                    " And a newer checkpoint turned out to be damaged after a part of it had been "
                    "restored: model and optimizer may hold that part, build them anew."
                )
            raise
        loaded.left_out = all_left_out([*parts, LeftOut(missing)])
        covered = frozenset[str]().union(*(each.covers for each in self._restorables))
        if self._overwritten - covered:
            raise StateMismatchError(
                "A newer checkpoint turned out to be damaged after a part of it had been restored; "
                "this one could not make good for all of that.",
                missing=sorted(self._overwritten - covered),
                hint=f"Build the objects anew and start with continue_from={loaded.epoch}.",
            )
        self._overwritten.update(covered)

    def _make_room(self) -> Memory:
        """Apply what is large, and return the memory that the bytes of the rest are read into."""
        self._apply(Phase.SHARDED)
        memory: Memory = {}
        for restorable in self._restorables:
            memory |= restorable.memory()
        return memory

    def _apply(self, phase: Phase, filled: Filled | None = None) -> None:
        """Apply what is due in a phase, by name: in the same order on every rank."""
        due = [restorable for restorable in self._restorables if restorable.phase == phase]
        for restorable in sorted(due, key=lambda restorable: restorable.name):
            self._begun.append(restorable)
            restorable.apply(filled or Filled())

    def _finish(self, filled: Filled) -> None:
        """Apply the rest; what fails here fails when the model's old bytes are gone."""
        try:
            for phase in (Phase.FILLED, Phase.OVERLAPPING, Phase.RANDOM):
                self._apply(phase, filled)
        except Exception as error:
            hint = f"Model and optimizer {_PART} this epoch: do not go on with them, build anew."
            raise _broken_off(error, hint) from error

    def _undo(self, error: Exception) -> None:
        """Undo what was applied, the last first, on every rank; a collective.

        Args:
            error: Why; where something cannot be undone, an error of this package says so.

        Raises:
            ImuckptError: `error` is another one, and something could not be undone.
        """
        partial = []
        if self._loaded.filling and not _tells(error):
            partial += [each.name for each in self._restorables if each.phase == Phase.FILLED]
        for restorable in reversed(self._begun):
            try:
                undone = restorable.undo()
            except Exception:  # noqa: BLE001 - user code; the error to raise is the one before
                undone = False
            if not undone:
                partial.append(restorable.name)
        of_ranks: list[list[str]] = [partial]
        with contextlib.suppress(GangBrokenError):  # then each rank speaks for itself
            of_ranks = [*map(json.loads, self._gang.all_gather(json.dumps(partial).encode()))]
        names = sorted({name for of_rank in of_ranks for name in of_rank})
        if names:
            _tell_part(error, names, self._loaded.epoch)


def _tells(error: Exception) -> bool:
    """Return whether an error, which may be another rank's, says what holds a part already."""
    return isinstance(error, ImuckptError) and _PART in (error.hint or "")


def _tell_part(error: Exception, names: Sequence[str], epoch: int) -> None:
    """Add to an error that objects may hold a part of an epoch; of another kind, raise ours.

    Of another kind is also a `StateMismatchError`: it says that nothing was changed.
    """
    hint = f"{', '.join(names)} {_PART} epoch {epoch}: build anew."
    if isinstance(error, StateMismatchError) or not isinstance(error, ImuckptError):
        raise _broken_off(error, hint) from error
    error.hint = f"{error.hint} {hint}" if error.hint else hint


def _broken_off(error: Exception, hint: str) -> ImuckptError:
    """Return the error that a restore was broken off by another one when it had begun to change."""
    text, rank = str(error), None
    if isinstance(error, ImuckptError):
        text, rank = error.message, error.rank
        if isinstance(error, StateMismatchError):
            names = [*error.missing, *error.unexpected, *error.wrong_shape]
            text += f" ({listed(names)})" if names else ""
        hint = f"{error.hint} {hint}" if error.hint else hint
    text = f"Restoring was broken off by {type(error).__name__}: {text}"
    return ImuckptError(text, rank=rank, hint=hint)


def restore_model(
    loaded: LoadedCheckpoint, model: nn.Module, device: torch.device | str | None, *, strict: bool
) -> None:
    """Restore a checkpoint's model alone, in this process alone; nothing else of it is read.

    Args:
        loaded: The checkpoint; its `left_out` is set.
        model: Changed in place.
        device: Where it is moved once everything is checked, ``None``: it stays.
        strict: Whether names that are missing or unexpected are an error.

    Raises:
        StateMismatchError: It does not fit, and is as it was.
        CorruptCheckpointError: As for `Restore.run`.
        ImuckptError: As for it.
    """
    with located(loaded.url, epoch=loaded.epoch):
        loaded.prepare_model()
        restorable = RestorableModel(model, loaded.saved_model, device, strict=strict)
        loaded.left_out = restorable.check()
        try:
            restorable.apply(loaded.fill(restorable.memory, optimizer=False)())
        except Exception as error:
            if loaded.filling and not _tells(error):
                _tell_part(error, [restorable.name], loaded.epoch)
            raise
    notices.of_left_out(loaded)
