"""The public class: what each call means to its user. What it does is in `ray_imuckpt.training`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, overload

import torch
from torch import nn

from ray_imuckpt import arguments, source
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import ImuckptError, public
from ray_imuckpt.loading.start import ModelT, OptimizerT, Start
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.options import RAISE, Retention, Retries, Saving
from ray_imuckpt.reporting.lines import Lines
from ray_imuckpt.runtime import pickling, ray_driver
from ray_imuckpt.saving.aftermath import Aftermath, OnCommit
from ray_imuckpt.saving.collect import Sources
from ray_imuckpt.saving.pending import PendingSave
from ray_imuckpt.source import Access, ContinueFrom
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.state.restorable_random import SavedRandom
from ray_imuckpt.storage.names import shown, working_directory
from ray_imuckpt.training import Training

_AS_BUILT: Any = object()


class Checkpointer(CheckpointDirectory):
    """Saves a training run's state at the end of epochs, and brings it back.

    It can be pickled: make it on the driver and let the workers of a gang have it.

    Args:
        dir: Where the checkpoints go: a path or any URL that fsspec knows. Left out in a worker of
            Ray Train or a trial of Ray Tune, the run's or trial's own storage; else ``"."``.
        continue_from: ``"last"`` (also ``"latest"``, ``"recent"``), ``"none"`` (also ``"start"``,
            ``"restart"``, ``"nothing"``, ``None``), the epoch of a checkpoint, ``"best"`` or
            ``Best(metric, mode)``; or the path, URL or ``ray.train.Checkpoint`` of one in any
            directory: from another run's, a new one begins here, and goes on by itself once it has
            saved.
        save_every: A checkpoint is made at the end of epochs that are a multiple of this. Left out:
            of every epoch, or, with `save_interval`, whenever that has passed.
        save_interval: Seconds or a ``timedelta``: a checkpoint is made at the end of any epoch when
            so long has passed since the last one began, by rank 0's clock.
        retention: Which checkpoints to keep, ``Retention(keep_last=3)`` for example: after each
            commit the others are deleted as by `prune`, in the background. Left out: all are kept.
        on_save_error: What a save that failed is, on every rank alike: ``"raise"`` an error at the
            next call; ``"warn"`` a warning, and training goes on. State that cannot be stored,
            ranks that differ and a second run in the directory are errors either way.
        max_failed_saves: With ``"warn"``: how many saves in a row may fail; one more is an error.
        on_commit: Called as ``on_commit(path, metrics)`` after each commit, on rank 0, on the
            thread that writes; the next save waits for it, and it may begin and wait for none. What
            it raises is a warning. It is pickled with the Checkpointer.
        blocking: Whether `checkpoint` returns when the checkpoint is committed, and not when the
            state is copied. One save is in flight at a time, the next one waits for it.
        snapshot: ``"eager"`` copies the state before `checkpoint` returns. ``"overlap"`` copies
            what only optimizers change beside the next forward and backward pass; the next
            ``step()`` of every optimizer waits for it. Not for loops that change parameters
            otherwise right after `checkpoint`: docs/adr/0009-overlap.md lists the conditions.
        storage_options: For the fsspec file system of `dir` (credentials, endpoint, …).
        retries: How often, and for how long, what fails on a store for a passing reason is tried
            again, ``Retries(attempts=5, deadline=30)`` for example. Left out: for two minutes.
        timeout: Seconds or a ``timedelta``, the same on all ranks: how long they wait for one that
            is late before `GangBrokenError`. Left out: 30 minutes.
        progress: Whether rank 0 shows what is resumed, committed and takes long, on standard error
            where `logging` is not set up, else in the log as INFO. ``False``: in the log, as DEBUG.

    Raises:
        ValueError: A value is none of the choices or not positive; or `dir` may mean two places,
            or is itself a checkpoint.
        TypeError: An argument has the wrong type.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the user's, and has a default
        self,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the seed's name
        continue_from: ContinueFrom = "last",
        save_every: int | None = None,
        *,
        save_interval: float | timedelta | None = None,
        retention: Retention | None = None,
        on_save_error: str = RAISE,
        max_failed_saves: int = 3,
        on_commit: OnCommit | None = None,
        blocking: bool = False,
        snapshot: str = "eager",
        storage_options: Mapping[str, Any] | None = None,
        retries: Retries | None = None,
        timeout: float | timedelta = arguments.TIMEOUT,
        progress: bool = True,
    ) -> None:
        super().__init__(dir, storage_options, retries)
        self.continue_from = source.continue_from(continue_from)
        self.saving = Saving(
            save_every=save_every,
            save_interval=save_interval,
            blocking=blocking,
            snapshot=snapshot,
            on_save_error=on_save_error,
            max_failed_saves=max_failed_saves,
        )
        self.retention = arguments.instance(retention, Retention, "retention")
        if isinstance(self.continue_from, str) and self.continue_from == arguments.BEST:
            self._best()
        self.on_commit = arguments.function(on_commit, "on_commit")
        self.timeout = arguments.duration(timeout, "timeout")
        self.progress = arguments.flag(progress, "progress")
        self._training = self._new_training()
        self._random: SavedRandom | None = None

    def _new_training(self) -> Training:
        aftermath = Aftermath(self.on_commit, self.retention)
        lines = Lines(wanted=self.progress)
        return Training(self.saving, self.timeout, aftermath, self._sound, lines)

    def __getstate__(self) -> dict[str, Any]:
        """Return the choices: the training stays in its process."""
        options = self._opening.options.items()
        pickling.check({f"storage_options[{name!r}]": value for name, value in options})
        pickling.check({"on_commit": self.on_commit, "The storage of of_result()": self._opened})
        here = dict.fromkeys(("_training", "_random", "_working_directory"))
        return {**vars(self), **here, "_sound": set(), "left_out": LeftOut()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the choices; the training is yet to begin."""
        vars(self).update(state)
        self._working_directory = working_directory()
        self._training = self._new_training()

    def __repr__(self) -> str:
        """Return the choices in words."""
        url = self.dir and shown(self.dir)
        choices = f"continue_from={shown(repr(self.continue_from))}, {self.saving.rule}"
        return f"Checkpointer(dir={url!r}, {choices})"

    # fmt: off
    @overload
    def start(self, model: ModelT, optimizer: None = None, *, continue_from: ContinueFrom = ...,
              per_rank: Mapping[str, Any] | None = ..., device: torch.device | str | None = ...,
              strict: bool = ..., **other: Any) -> Start[ModelT, None]: ...
    @overload
    def start(self, model: ModelT, optimizer: OptimizerT, *, continue_from: ContinueFrom = ...,
              per_rank: Mapping[str, Any] | None = ..., device: torch.device | str | None = ...,
              strict: bool = ..., **other: Any) -> Start[ModelT, OptimizerT]: ...
    # fmt: on
    @public
    def start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        continue_from: ContinueFrom = _AS_BUILT,
        per_rank: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        strict: bool = True,
        **other: Any,
    ) -> Start[Any, Any]:
        """Continue from a checkpoint, or begin. Call it on every rank, once, before training.

        The objects given are restored in place, on every rank. Random generators are put back last.

        Args:
            model: Bare, or wrapped in DDP or ``torch.compile``, or sharded by FSDP2.
            optimizer: Of `model`'s parameters; leave it out where these are others than saved.
            continue_from: Instead of the Checkpointer's. An epoch that does not exist falls back,
                with a warning, to the last one before it, or to scratch; a place is an error then.
            per_rank: Objects with ``state_dict`` whose state differs by rank (samplers, loaders).
            device: Where to move `model` once all fits, before its state is loaded.
            strict: Whether names that do not match (see `load`) and renamed classes are an error.
            **other: Objects with ``load_state_dict`` are restored; any other value is a default,
                which ``other`` holds under that name when nothing was saved.

        Returns:
            The objects as given, with ``[]``, ``1`` and `other` where nothing was to continue from.

        Raises:
            StateMismatchError, CheckpointNotFoundError: Unfit, or gone; nothing was changed.
            UnsupportedStateError: A value of `other` could not be stored.
            CorruptCheckpointError: The epoch asked for, or all there are, are damaged; the message
                says so where the objects may hold a part of it.
            UnsupportedFormatError, StorageError: Of a newer release; `dir` is out of reach.
            ValueError, TypeError: Wrong arguments, or arguments that differ between ranks.
        """
        choice = self.continue_from if continue_from is _AS_BUILT else continue_from
        targets = Targets(model, optimizer, other, per_rank or {}, device)
        started, loaded = self._training.start(self._access(), choice, targets, strict=strict)
        self.left_out = loaded.left_out if loaded else LeftOut()
        self._random = loaded.saved_random if loaded else None
        return started

    def restore_random_state(self) -> None:
        """Put the random generators of this rank where `start` put them, once more.

        For where something has drawn from them since. From scratch there is nothing to put back.

        Raises:
            ImuckptError: `start` was not called.
        """
        if self._training.run is None:
            raise ImuckptError("Nothing was restored yet.", hint="Call start() first.")
        if self._random is not None:
            self._random.apply()

    def checkpoint(  # noqa: PLR0913 - each is a choice of the user's, and has a default
        self,
        epoch: int,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        log: Any = None,
        metrics: Mapping[str, Any] | None = None,
        per_rank: Mapping[str, Any] | None = None,
        step: int | None = None,
        force: bool = False,
        last: bool = False,
        validation: Any = False,
        **other: Any,
    ) -> PendingSave | None:
        """End an epoch: save if it is due. Call it on every rank, at every epoch.

        Everything is copied before this returns, or (``"overlap"``) before the next optimizer step.

        Args:
            epoch: The one that has just ended; if saved before, replaced once this is committed.
            model: As for `start`.
            optimizer: As for `start`.
            log: The training log, of any plain types; rank 0's is stored.
            metrics: Numbers, kept and told to Ray; the same names on every rank, rank 0's count.
            per_rank: As for `start`; every rank's state is stored.
            step: How many steps the training has made, if that is to be kept: the same on all.
            force: Save whatever ``save_every`` and ``save_interval`` say.
            last: The same, for the last epoch of a loop: ``last=epoch == epochs``.
            validation: As for ``ray.train.report``: whether Ray Train validates what was saved, or
                a ``ray.train.ValidationTaskConfig``. Elsewhere a warning says that none does.
            **other: Objects with ``state_dict``, or plain values; rank 0's are stored.

        Returns:
            The save, or ``None`` when none was due.

        Raises:
            UnsupportedStateError: Something cannot be stored, or is trained and not stored.
            SaveFailedError: This save (with ``blocking``) or the one before failed, and
                `on_save_error` does not let training go on; see its text.
            ValueError, TypeError: Wrong arguments, or arguments that differ between ranks.
        """
        sources = Sources(model, optimizer, log, per_rank or {}, other)
        label = epoch, step, metrics, validation
        return self._training.checkpoint(self._access(), sources, label, force=bool(force or last))

    def preempted(self) -> bool:
        """Return whether this run is about to be stopped: save with ``force=True`` while you can.

        Every rank calls it equally often; it is true on all once one was told: by Ray, or else by a
        SIGTERM. From the first call on, the first SIGTERM ends no process; a second one does.
        """
        return self._training.preempted()

    def wait(self) -> None:
        """Return when all saves that were begun are durable. Every rank of a gang calls it.

        Raises:
            SaveFailedError: One was not committed, and `on_save_error` does not tolerate it.
        """
        self._training.wait()

    def __enter__(self) -> Checkpointer:
        """Return itself, for ``with``: leaving it waits for the saves that were begun."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the saves that were begun."""
        self._training.leave(failed=kind is not None)

    @public
    def run_config(self, **kwargs: Any) -> Any:
        """Return a ``ray.train.RunConfig`` whose storage is `dir`, for the driver.

        Ray's memory of the directory is set aside, with a warning, where it is broken or is of
        another branch than this run's. `kwargs` are everything else of a ``RunConfig``.

        Raises:
            ValueError: `kwargs` name another storage, or let Ray delete checkpoints beside
                `retention`.
        """
        if self.retention is not None:
            ray_driver.refuse_deletions(kwargs.get("checkpoint_config"))
        storage = None if self.dir is None else self._storage()
        return ray_driver.run_config(storage, fresh=self.continue_from != arguments.LAST, **kwargs)

    def _protected(self) -> set[int]:
        run = self._training.run
        return {run.resumed_from} if run and run.resumed_from is not None else set()

    def _access(self) -> Access:
        return Access(self._storage, self._opening, self.get, self._best)
