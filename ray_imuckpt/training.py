"""The training of one Checkpointer in this process: who is asked, and in which order.

Every call that is made on all ranks is here; what each of them means to a user is said by
`ray_imuckpt.Checkpointer`. Holds what belongs to this process and to no other: it is not pickled.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from ray_imuckpt import arguments, source
from ray_imuckpt.agreement import traits
from ray_imuckpt.agreement.agreement import Traits
from ray_imuckpt.errors import located
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import selection
from ray_imuckpt.loading.decision import Choice, Offer
from ray_imuckpt.loading.start import Start, started
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.options import Saving
from ray_imuckpt.reporting.audit import Audit
from ray_imuckpt.reporting.journal import Journal
from ray_imuckpt.reporting.lines import Lines
from ray_imuckpt.reporting.reports import Report, Reports
from ray_imuckpt.repository.codec import Plan
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.runtime import registry
from ray_imuckpt.runtime.session import Session
from ray_imuckpt.saving.aftermath import Aftermath
from ray_imuckpt.saving.collect import Label, Sources
from ray_imuckpt.saving.division import Division
from ray_imuckpt.saving.job import Order
from ray_imuckpt.saving.operation import says_what_stands
from ray_imuckpt.saving.pending import PendingSave
from ray_imuckpt.saving.preparation import prepare
from ray_imuckpt.saving.saver import Saver
from ray_imuckpt.saving.writer import finish_all
from ray_imuckpt.source import Access
from ray_imuckpt.state.fitting import check_early
from ray_imuckpt.state.names import check_names
from ray_imuckpt.state.objects import check_defaults, check_given
from ray_imuckpt.state.optimizer_options import options_of
from ray_imuckpt.state.sharding import shard_again
from ray_imuckpt.storage import Storage, same_directory
from ray_imuckpt.threads.turns import Turns, in_turn

T = TypeVar("T")


class Training:
    """The training of one Checkpointer in this process; its calls are made one at a time.

    Args:
        saving: When and how a checkpoint is made.
        timeout: How long ranks wait for one that is late.
        aftermath: What follows each commit.
        sound: The ids of saves that this process has written or verified; those of this training
            are added.
        lines: Where is told what happens.
    """

    def __init__(
        self,
        saving: Saving,
        timeout: timedelta,
        aftermath: Aftermath,
        sound: set[str],
        lines: Lines,
    ) -> None:
        self._saving = saving
        self._timeout = timeout
        self._aftermath = aftermath
        self._sound = sound
        self._session: Session | None = None
        self._saver = Saver(saving, timeout)
        self._reports = Reports()
        self._saved_at = time.monotonic()
        self._turns = Turns()
        self._audit = Audit()
        self._journal = Journal(lines)

    @property
    def run(self) -> Run | None:
        """Return what is known of the run; ``None`` before `start`, and before the first save."""
        return self._saver.run

    @in_turn
    @says_what_stands
    def start(
        self, access: Access, choice: Any, targets: Targets, *, strict: bool
    ) -> tuple[Start[Any, Any], LoadedCheckpoint | None]:
        """Continue from a checkpoint, or begin; a collective.

        Args:
            access: Where the checkpoints are.
            choice: What to continue from, as the user said it.
            targets: The live objects, as the user gave them.
            strict: Whether names that do not match are an error.

        Returns:
            What training begins with; and what it was continued from, if it was.
        """
        session = self._enter()
        gang, model, optimizer = session.gang, targets.model, targets.optimizer

        def request() -> tuple[tuple[Choice, Storage, Storage | None], Traits, None]:
            finish_all()  # of another Checkpointer of this process
            check_given(model, optimizer, targets.per_rank)
            check_defaults(targets.other)
            live = (model, *targets.per_rank.values(), *targets.other.values())
            shard_again(live)
            check_names(live)
            check_early(optimizer)
            chosen = source.chosen(choice, access)
            words = source.in_words(chosen)
            arguments.device(targets.device)
            alike = traits.arguments(
                model, optimizer, targets.per_rank, targets.other, continue_from=words
            )
            shapes = traits.of_live(gang, model, optimizer)
            return (chosen, access.open(session), session.offered()), Traits(alike, shapes), None

        (chosen, storage, offered), _ = self._meet(gang, "start", request, wait=True)
        opening = access.opening
        offer = Offer(offered.with_retries(opening.retries), opening) if offered else None
        loaded = self._continue(session, storage, chosen, offer, targets, strict=strict)
        return started(targets, loaded), loaded

    def _continue(
        self,
        session: Session,
        storage: Storage,
        choice: Choice,
        offer: Offer | None,
        targets: Targets,
        *,
        strict: bool,
    ) -> LoadedCheckpoint | None:
        """Restore what the gang decides on, if anything; return it."""
        gang, identity, began = session.gang, session.identity, time.perf_counter()
        built = options_of(targets.optimizer)
        with located(storage.url, rank=gang.rank), self._journal.restoring(gang) as progress:
            run, loaded = selection.begin(
                gang, storage, choice, identity, targets, progress, strict=strict, offer=offer
            )
            if loaded is not None and not run.foreign:
                session.adopt(storage, loaded.manifest)
            gang.run_all(lambda: self._audit.started(gang, targets, loaded))
        run.sound = self._sound
        self._saver.run, self._saved_at = run, time.monotonic()
        took, looked = time.perf_counter() - began, choice != arguments.NONE
        self._journal.started(gang, storage.url, targets, loaded, took, built, looked=looked)
        return loaded

    @in_turn
    @says_what_stands
    def checkpoint(
        self,
        access: Access,
        sources: Sources,
        label: tuple[Any, ...],
        *,
        force: bool,
    ) -> PendingSave | None:
        """End an epoch: save if it is due; a collective.

        Args:
            access: Where the checkpoints are.
            sources: What to save, as the user gave it.
            label: The arguments of `arguments.label`, as the user gave them.
            force: Whether to save whatever the rules say.

        Returns:
            The save, or ``None`` when none was due.
        """
        began, session = time.perf_counter(), self._enter()
        gang = session.gang

        def request() -> tuple[tuple[Label, bool, Storage], Traits, bool]:
            check_given(sources.model, sources.optimizer, sources.per_rank)
            named = Label(*arguments.label(*label))
            shard_again((sources.model, *sources.per_rank.values(), *sources.other.values()))
            self._audit.saving(gang, sources)
            due = force or self._saving.is_due(named.epoch)
            more = {"whether a save is due": due, **named.traits}
            alike = traits.arguments(
                sources.model, sources.optimizer, sources.per_rank, sources.other, **more
            )
            late = self._saving.is_due_after(time.monotonic() - self._saved_at)
            return (named, due, access.open(session)), Traits(alike), late

        (named, due, storage), late = self._meet(gang, "checkpoint", request, wait=False)
        if not (due or late[0]):  # one clock decides: rank 0's
            self._pass(session, storage, named)
            return None
        run = self._known_run(session, storage, named.epoch)

        meet = partial(self._meet, gang, "checkpoint", wait=True)
        plan, divided = prepare(gang, storage, run, named.epoch, sources, meet)
        return self._save(access, session, storage, run, plan, divided, sources, named, began)

    def _known_run(self, session: Session, storage: Storage, epoch: int) -> Run:
        if self._saver.run is None:  # no start(): nothing is known of a history to branch from
            self._audit.unstarted(session.gang, storage, epoch)
            run_id = session.identity.id or uuid.uuid4().hex
            self._saver.run = Run(run_id, None, branch_begun=True, sound=self._sound)
        return self._saver.run

    def _pass(self, session: Session, storage: Storage, label: Label) -> None:
        self._journal.passed(session.gang, label.epoch, self._saving.rule)
        if label.metrics is not None:
            self._reports.add(Report(session, label.metrics, storage))

    def _save(
        self,
        access: Access,
        session: Session,
        storage: Storage,
        run: Run,
        plan: Callable[[], Plan],
        divided: Division,
        sources: Sources,
        label: Label,
        began: float,
    ) -> PendingSave:
        epoch, saving = label.epoch, self._saving
        self._saved_at = time.monotonic()
        background = not (saving.blocking or session.immediate or epoch in session.registered)
        own = session.run_directory
        ours = not (session.deletes and own is not None and same_directory(storage, own))
        gang, url = session.gang, storage.url
        with self._journal.saving(gang, url, epoch, began, waits=not background) as story:

            def committed(manifest: Manifest) -> None:
                story.committed(manifest)
                self._aftermath.follow(storage, run, manifest, prunes=ours)

            operation = self._saver.begin(
                gang,
                Order(storage, run, label, gang.world_size, divided, committed, story.progress),
                plan,
                background=background,
                later=sources.optimizers() if saving.snapshot == "overlap" else None,
            )
        report = Report(session, label.metrics, storage, operation, label.validation)
        self._reports.add(report, hold=saving.tolerant)
        return PendingSave(epoch, operation, self.wait, access.get)

    @in_turn
    @says_what_stands
    def preempted(self) -> bool:
        """Return whether this run is about to be stopped, as any rank knows; a collective."""
        return self._enter().preempted()

    @in_turn
    @says_what_stands
    def wait(self) -> None:
        """Return when all saves that were begun are durable; a collective."""
        try:
            self._saver.settle(self._enter().gang)
        finally:
            self._reports.flush()

    def leave(self, *, failed: bool) -> None:
        """End the training: wait for the saves that were begun.

        Args:
            failed: Whether by an error. The other ranks may never come to wait, so that nobody is
                asked; otherwise this is a collective.
        """
        if failed:
            self._saver.finish()
        else:
            self.wait()
        self._journal.end()

    def _meet(
        self, gang: Gang, call: str, step: Callable[[], tuple[T, Traits, Any]], *, wait: bool
    ) -> tuple[T, list[Any]]:
        """Meet as `Saver.meet`, then report what waited for the end of a save."""
        try:
            return self._saver.meet(gang, call, step, wait=wait)
        finally:
            self._reports.flush()

    def _enter(self) -> Session:
        self._session = registry.session(self._timeout, self._session)
        self._turns.gang = self._session.gang.world_size > 1
        return self._session
