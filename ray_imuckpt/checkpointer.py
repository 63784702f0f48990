"""The public class: policy only. What is due, who is asked, in which order; the work is below.

Longer than a room should be, because it is the one that users read: its lines are documentation.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ray_imuckpt import arguments
from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits, agreed
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import located, public
from ray_imuckpt.loading import selection
from ray_imuckpt.loading.decision import Offer
from ray_imuckpt.loading.start import Start, started
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.options import Retention, Saving
from ray_imuckpt.reporting.audit import Audit
from ray_imuckpt.reporting.journal import Journal
from ray_imuckpt.repository import codec, retention
from ray_imuckpt.repository.run import Run
from ray_imuckpt.runtime import ray_driver, registry
from ray_imuckpt.runtime.session import SavedEpoch, Session
from ray_imuckpt.saving import collect
from ray_imuckpt.saving.collect import Label
from ray_imuckpt.saving.operation import says_what_stands
from ray_imuckpt.saving.saver import PendingSave, Saver
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.state.fitting import check_early
from ray_imuckpt.state.live import LeftOut
from ray_imuckpt.state.names import check_names
from ray_imuckpt.state.objects import check_given
from ray_imuckpt.storage import Storage, shown
from ray_imuckpt.threads.turns import Turns, in_turn

_AS_BUILT: Any = object()


class Checkpointer(CheckpointDirectory):
    """Saves a training run's state at the end of epochs, and brings it back.

    It can be pickled: make it on the driver and let the workers of a gang have it.

    Args:
        dir: Where the checkpoints go: a path or any URL that fsspec knows. Left out in a worker of
            Ray Train, the run's own storage; left out elsewhere, ``"."``.
        continue_from: ``"last"`` (also ``"latest"``, ``"recent"``), ``"none"`` (also ``"start"``,
            ``"restart"``, ``"nothing"``, ``None``), or the epoch of a checkpoint.
        save_every: A checkpoint is made at the end of epochs that are a multiple of this.
        blocking: Whether `checkpoint` returns only when the checkpoint is committed. Otherwise it
            returns as soon as the state is copied, and the rest happens in the background; one save
            is in flight at a time, the next one waits for it.
        snapshot: ``"eager"`` copies the state before `checkpoint` returns. ``"overlap"`` copies
            what only optimizers change beside the next forward and backward pass; the next
            ``step()`` of every optimizer that was passed waits for it. Not for loops that change
            parameters otherwise right after `checkpoint` (swapping in averaged weights,
            ``p.data.clamp_()``): docs/adr/0009-overlap.md lists the conditions.
        storage_options: For the fsspec file system of `dir` (credentials, endpoint, …).
        timeout: Seconds or a ``timedelta``: how long ranks wait for one that is late (rank 0, say,
            with a save to a slow storage) before `GangBrokenError`. The same on all ranks.

    Raises:
        ValueError: `continue_from` is none of the choices, `save_every` is not positive, or `dir`
            may mean two places, or is itself a checkpoint.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the seed's name
        continue_from: str | int | None = "last",
        save_every: int = 1,
        *,
        blocking: bool = False,
        snapshot: str = "eager",
        storage_options: Mapping[str, Any] | None = None,
        timeout: float | timedelta = arguments.TIMEOUT,
    ) -> None:
        super().__init__(dir, storage_options)
        self.continue_from = arguments.continue_from(continue_from)
        self.saving = Saving(save_every=save_every, blocking=blocking, snapshot=snapshot)
        self.timeout = arguments.duration(timeout, "timeout")
        self._forget_process()

    def _forget_process(self) -> None:
        self._session: Session | None = None
        self._saver = Saver()
        self._turns = Turns()
        self._audit = Audit()
        self._journal = Journal()
        self.left_out = LeftOut()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the choices, nothing of this process."""
        kept = ("continue_from", "dir", "saving", "timeout")
        return {name: self.__dict__[name] for name in (*kept, "_storage_options", "_place")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A Checkpointer in another process begins without a run."""
        self.__dict__.update(state)
        self._forget_process()

    def __repr__(self) -> str:
        """The choices."""
        place = self.dir and shown(self.dir)
        choices = f"continue_from={self.continue_from!r}, save_every={self.saving.save_every}"
        return f"Checkpointer(dir={place!r}, {choices})"

    # ------------------------------------------------------------------ training, on every rank

    @public
    @in_turn
    @says_what_stands
    def start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        continue_from: str | int | None = _AS_BUILT,
        per_rank: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        strict: bool = True,
        **other: Any,
    ) -> Start:
        """Continue from a checkpoint, or begin. Call it on every rank, once, before training.

        The objects given are restored in place, on every rank. Random generators are put back last.

        Args:
            model: Bare, or wrapped in DDP or ``torch.compile``, or sharded by FSDP2.
            optimizer: The optimizer of `model`'s parameters.
            continue_from: Instead of the Checkpointer's. An epoch that does not exist falls back,
                with a warning, to the last one before it, and to scratch when there is none.
            per_rank: Objects with ``state_dict`` whose state differs by rank (samplers, loaders).
            device: Where to move `model` once all fits, before its state is loaded.
            strict: Whether names that do not match (see `load`) and renamed classes are an error.
            **other: Objects with ``load_state_dict`` are restored; any other value is a default,
                which ``other`` holds under that name when nothing was saved.

        Returns:
            From scratch: the objects as given, ``[]``, ``1``, and `other` as given.

        Raises:
            StateMismatchError, CheckpointNotFoundError: Unfit, or gone; nothing was changed.
            CorruptCheckpointError: The epoch asked for, or all there are, are damaged. Where bytes
                were altered the objects may hold a part of it, and the message says so.
            UnsupportedFormatError, StorageError: Written by a newer release; `dir` is out of reach.
            ValueError, TypeError: Wrong arguments, or arguments that differ between ranks.
        """
        session = self._enter()
        gang = session.gang

        def request() -> tuple[tuple[str | int, Storage, Storage | None], Traits]:
            check_given(model, optimizer, per_rank)
            check_names((model, *(per_rank or {}).values(), *other.values()))
            check_early(optimizer)
            chosen = self.continue_from if continue_from is _AS_BUILT else continue_from
            choice = arguments.continue_from(chosen)
            arguments.device(device)
            asked = traits.arguments(model, optimizer, per_rank, other, epoch=choice)
            alike = Traits(asked, traits.of_live(gang, model, optimizer))
            return (choice, self._storage(session), session.offered()), alike

        self._saver.settle(gang)
        finish_all()  # of another Checkpointer of this process
        choice, storage, offered = agreed(gang, "start", request)
        targets = Targets(model, optimizer, other, per_rank or {}, device)
        loaded = self._continue(session, storage, choice, offered, targets, strict=strict)
        return started(targets, loaded)

    def _continue(
        self,
        session: Session,
        storage: Storage,
        choice: str | int,
        offered: Storage | None,
        targets: Targets,
        *,
        strict: bool,
    ) -> LoadedCheckpoint | None:
        gang, began = session.gang, time.perf_counter()
        offer = None if offered is None else Offer(offered, self._storage_options)
        with located(storage.url, rank=gang.rank):
            run, loaded = selection.begin(
                gang, storage, choice, session.identity, targets, strict=strict, offer=offer
            )
            if loaded is not None:
                session.adopt(storage, loaded.manifest)
            gang.run_all(lambda: self._audit.started(gang, targets, loaded))
        self._saver.run = run
        self.left_out = loaded.left_out if loaded else LeftOut()
        took = time.perf_counter() - began
        self._journal.started(gang, storage.url, loaded, took, looked=choice != arguments.NONE)
        return loaded

    @in_turn
    @says_what_stands
    def checkpoint(
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
        **other: Any,
    ) -> PendingSave | None:
        """The end of an epoch: save if it is due. Call it on every rank, at every epoch.

        Everything is copied before this returns, or (``"overlap"``) before the next optimizer step.

        Args:
            epoch: The one that has just ended; if saved before, replaced once this is committed.
            model: As for `start`.
            optimizer: As for `start`.
            log: The training log, of any plain types; rank 0's is stored.
            metrics: Numbers, kept and told to Ray; the same names on every rank, rank 0's count.
            per_rank: As for `start`; every rank's state is stored.
            step: How many steps the training has made, if that is to be kept: the same on all.
            force: Save also when `epoch` is not a multiple of ``save_every``.
            last: The same, for the last epoch of a loop: ``last=epoch == epochs``.
            **other: Objects with ``state_dict``, or plain values; rank 0's are stored.

        Returns:
            The save, or ``None`` when none was due.

        Raises:
            UnsupportedStateError: Something cannot be stored, or is trained and not stored.
            SaveFailedError: This save (with ``blocking``) or the one before failed; see its text.
            ValueError, TypeError: Wrong arguments, or arguments that differ between ranks.
        """
        began, session = time.perf_counter(), self._enter()
        gang, mine = session.gang, per_rank or {}

        def request() -> tuple[tuple[Label, bool, Storage], Traits]:
            check_given(model, optimizer, per_rank)
            label = Label(*arguments.label(epoch, step, metrics))
            self._audit.saving(gang, model, optimizer, log, mine, other)
            due = bool(force or last) or self.saving.is_due(label.epoch)
            more = {"whether a save is due": due, **label.traits}
            asked = traits.arguments(model, optimizer, mine, other, **more)
            return (label, due, self._storage(session)), Traits(asked)

        self._saver.settle(gang, wait=False)
        label, due, storage = agreed(gang, "checkpoint", request)
        if not due:
            self._pass(session, storage, label)
            return None
        self._saver.settle(gang)
        run = self._known_run(session, storage, label.epoch)
        state = collect.capture(gang, run, model, optimizer, log, mine, other)
        objects = [optimizer, *other.values(), *mine.values()]
        return self._save(session, storage, state, label, objects, began)

    def _known_run(self, session: Session, storage: Storage, epoch: int) -> Run:
        if self._saver.run is None:  # no start(): nothing is known of a history to branch from
            self._audit.unstarted(session.gang, storage, epoch)
            self._saver.run = Run(session.identity.id or uuid.uuid4().hex, None, branch_begun=True)
        return self._saver.run

    def _pass(self, session: Session, storage: Storage, label: Label) -> None:
        self._journal.passed(session.gang, label.epoch, self.saving.save_every)
        if label.metrics is not None:
            session.report(label.metrics, storage, None)

    def _save(
        self,
        session: Session,
        storage: Storage,
        state: codec.TrainingState,
        label: Label,
        objects: list[Any],
        began: float,
    ) -> PendingSave:
        epoch = label.epoch
        optimizers = [o for o in objects if hasattr(o, "param_groups")]
        saving = self._journal.saving(storage.url, epoch, began)
        operation = self._saver.begin(
            session.gang,
            storage,
            state,
            label,
            background=not (
                self.saving.blocking or session.immediate or epoch in session.registered
            ),
            later=optimizers if self.saving.snapshot == "overlap" else None,
            committed=saving.committed,
        )
        saving.returned()
        session.report(label.metrics, storage, SavedEpoch(epoch, operation.writing))
        return PendingSave(epoch, operation, self.wait, self.get)

    @in_turn
    @says_what_stands
    def preempted(self) -> bool:
        """Whether this run is about to be stopped: save with ``force=True`` while there is time.

        Every rank calls it equally often; it is true on all as soon as one was told. In Ray Train,
        Ray knows (``ray.train.get_preemption_info``). Elsewhere it is SIGTERM: from the first call
        on, the first one is noted and no longer ends the process, a second one does.
        """
        return self._enter().preempted()

    @in_turn
    @says_what_stands
    def wait(self) -> None:
        """Return when all saves that were begun are durable. Every rank of a gang calls it.

        Raises:
            SaveFailedError: The save failed; nothing was committed.
        """
        self._saver.settle(self._enter().gang)

    def __enter__(self) -> Checkpointer:
        """For ``with``: leaving it waits for the saves that were begun."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the saves that were begun."""
        if kind is None:
            self.wait()
        else:  # the other ranks may never come to wait
            self._saver.finish()
        self._journal.end()

    # ------------------------------------------------------------------ on the driver

    @public
    def prune(
        self,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: tuple[str, str] | tuple[str, str, int] | None = None,
        dry_run: bool = False,
    ) -> list[int]:
        """Delete the checkpoints that no rule keeps; see `repository.retention.prune`."""
        finish_all()
        run = self._saver.run
        protected = {run.resumed_from} if run and run.resumed_from is not None else set()
        rules = Retention(keep_last=keep_last, keep_every=keep_every, keep_best=keep_best)
        return retention.prune(self._storage(), rules, protected, dry_run=dry_run)

    @public
    def run_config(self, **kwargs: Any) -> Any:
        """A ``ray.train.RunConfig`` whose storage is `dir`, for the driver.

        If Ray's memory of the directory is broken, or is of another branch than this run's, it is
        set aside (kept beside, with a warning), so that the run can begin.

        Args:
            **kwargs: Everything else of a ``RunConfig``.
        """
        place = None if self.dir is None else self._storage()
        return ray_driver.run_config(place, fresh=self.continue_from != arguments.LAST, **kwargs)

    # ------------------------------------------------------------------ below

    def _enter(self) -> Session:
        self._session = registry.session(self.timeout, self._session)
        self._turns.gang = self._session.gang.world_size > 1
        return self._session
