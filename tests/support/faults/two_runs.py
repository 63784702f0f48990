"""A state machine of two runs in one directory, beside a plain model of what is there. Touches os.

Each save knows the save that it came from, and the last commit is the tip of the current branch.
"The last" is the newest checkpoint of the tip's history that is still there, never one of a branch
that was left; and nothing goes that nobody removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ray_imuckpt import Checkpointer, SaveFailedError
from ray_imuckpt.saving import job
from support.disk.recording import Died
from support.faults.branches import Branches, Run
from support.faults.interposed import Once, checkpointer_on
from support.faults.training import objects, version_in, write

WRITERS = st.sampled_from([0, 1])


class TwoRuns(RuleBasedStateMachine):
    """Two runs in one directory."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp()) / "run"
        self.model = Branches()
        self.writers: list[Run | None] = [None, None]
        self.older: list[tuple[bytes, int | None, set[int | None]]] = []
        self.stale = False  # whether an older record is in place
        self.damages = 0  # how often the record was lost or cut
        self.records = 0  # how often a run wrote the record
        self.offset = timedelta()
        self.files: dict[int, set[tuple[str, int, int, int]]] = {}  # when they were read last
        self.versions: dict[int, int | None] = {}  # what was read then

    def teardown(self) -> None:
        shutil.rmtree(self.directory.parent)

    # ------------------------------------------------------------------ runs

    @rule(which=WRITERS, choice=st.data())
    def start(self, which: int, choice: Any) -> None:
        """Begin a run: from the last, from an epoch, or from scratch."""
        choices: list[Any] = ["last", "last", "none", *sorted(self.model.there)]
        chosen = choice.draw(st.sampled_from(choices))
        dies: list[bool] = []

        def before(method: str, name: str) -> None:
            if dies and method == "put_if" and name.endswith("manifest.json"):
                raise Died

        checkpointer = checkpointer_on(str(self.directory), before, chosen)
        model, optimizer = objects()
        started = checkpointer.start(model, optimizer)
        epoch = started.start_epoch - 1 or None
        if chosen == "last":
            assert epoch in self.model.lasts()
        else:
            assert epoch == (None if chosen == "none" else chosen)
        at = None if epoch is None else self.model.there[epoch]
        assert (started.log[0] if started.log else None) == at
        self.writers[which] = Run(
            checkpointer,
            model,
            optimizer,
            at,
            self.model.tip,
            self.records,
            self.damages,
            epoch,
            dies,
        )

    @precondition(lambda self: any(self.writers))
    @rule(
        which=WRITERS,
        gap=st.sampled_from([1, 1, 1, 2, 4]),
        dies=st.sampled_from([0, 0, 0, 1]),
        hours=st.sampled_from([0, -48, 48]),
    )
    def save(self, which: int, gap: int, dies: int, hours: int) -> None:
        """Save the next epoch or one further on, or die between the record and the commit."""
        self.offset = timedelta(hours=hours)
        run = self.writers[which] or self.writers[1 - which]
        assert run is not None
        run.dies[:] = [True] * dies
        self._save(run, gap)

    def _save(self, run: Run, gap: int) -> None:
        epoch = gap + (0 if run.at is None else self.model.saved[run.at][0])
        version = len(self.model.saved) + 1
        self.model.saved[version] = epoch, run.at
        another_saved, another_began = run.known != self.model.tip, run.records != self.records
        damaged = run.damages != self.damages
        self.records += run.committed and damaged  # it may put its own record back
        try:
            write(run.checkpointer, epoch, version, run.model, run.optimizer)
        except Died:
            self.stale = False
            if not run.committed:
                self.model.begun.add(run.at)
                self.records += 1
            self.writers[self.writers.index(run)] = None
            return
        except SaveFailedError:
            assert another_saved or another_began, "refused though nothing came between"
            self.writers[self.writers.index(run)] = None
            return
        # A first save without a record leaves the other's work behind, whole: it cannot know.
        blind = damaged and not run.committed
        assert blind or not another_saved, "a save over another run's newer work was let through"
        self.model.there[epoch] = self.model.tip = run.at = run.known = version
        self.model.begun, self.stale = set(), False
        self.records += not run.committed
        run.committed, run.records, run.damages = True, self.records, self.damages

    # ------------------------------------------------------------------ what else happens

    @precondition(lambda self: self.model.lasts() - {None})
    @rule(keep=st.integers(1, 3), which=WRITERS, beside=st.booleans())
    def prune(self, keep: int, which: int, beside: bool) -> None:
        """Prune, and maybe let a run save in the middle; what is live and newest stays."""
        old = [self.model.live(tip) for tip in {self.model.tip, *self.model.begun}]
        run = self.writers[which]
        saves = beside and run is not None and run.known == self.model.tip
        first: set[int] = set()

        def right_after_the_first_has_gone() -> None:
            assert act.call is not None
            first.add(int(act.call[1].removeprefix("checkpoint=")))
            self.model.there.pop(*first)
            if saves and run is not None:
                run.dies.clear()
                self._save(run, 1)

        act = Once(right_after_the_first_has_gone, 1, "delete_empty")
        gone = set(checkpointer_on(str(self.directory), act).prune(keep_last=keep)) - first
        new = self.model.live(self.model.tip)
        assert gone <= {epoch for live in (*old, new) for epoch in sorted(live)[:-1]}
        assert not gone & set(sorted(new)[-keep:]), "the current branch's newest are kept"
        if run is not None and run.committed and run.at == self.model.tip:
            assert run.parent not in gone, "what the present run has come from is kept"
        for epoch in gone:
            self.model.there.pop(epoch)

    @precondition(lambda self: len(self.model.there) > 1)
    @rule(choice=st.data())
    def delete_by_hand(self, choice: Any) -> None:
        """Remove a checkpoint that is not the tip, as `rm` does."""
        epochs = sorted(e for e, v in self.model.there.items() if v != self.model.tip)
        if epochs:
            epoch = choice.draw(st.sampled_from(epochs))
            shutil.rmtree(self.directory / f"checkpoint={epoch}")
            self.model.there.pop(epoch)

    @precondition(lambda self: self.record.exists() and self.model.tip in self.model.there.values())
    @rule(how=st.sampled_from(["lose", "cut", "empty"]))
    def damage_the_record(self, how: str) -> None:
        """Lose or cut the record of branches."""
        data = self.record.read_bytes()
        if how == "lose":
            self.record.unlink()
        else:
            self.record.write_bytes(data[: len(data) // 2] if how == "cut" else b"")
        self.model.begun = {self.model.tip} if self.model.begun else set()
        self.damages += 1

    @property
    def record(self) -> Path:
        """The record of branches."""
        return self.directory / "lineage.json"

    @precondition(lambda self: self.record.exists())
    @rule()
    def copy_the_record(self) -> None:
        """Keep a copy of the record, as a backup does."""
        self.older.append((self.record.read_bytes(), self.model.tip, set(self.model.begun)))

    # It is noticed by the checkpoint with the highest epoch, or not at all.
    @precondition(lambda self: self.older and self.model.tip == self.model.highest())
    @rule()
    def bring_back_an_older_record(self) -> None:
        """Restore the record from a backup, while no run is at work."""
        self.writers = [None, None]
        record, tip, begun = self.older.pop()
        self.record.write_bytes(record)
        self.model.begun = begun if tip == self.model.tip else set()
        self.stale = True

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def nothing_goes_by_itself(self) -> None:
        """Every checkpoint holds what was saved, and no other is listed."""
        reader = Checkpointer(self.directory)
        found = reader.list_existing_checkpoint_indices() if self.directory.exists() else []
        for epoch in found:
            if self.files.get(epoch) != (files := self.files_of(epoch)):
                self.versions[epoch] = version_in(reader, epoch)
                self.files[epoch] = files
        assert {epoch: self.versions[epoch] for epoch in found} == self.model.there

    def files_of(self, epoch: int) -> set[tuple[str, int, int, int]]:
        """Return what changes when a file of a checkpoint does: only then is it read again."""
        with os.scandir(self.directory / f"checkpoint={epoch}") as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
        return {(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found}

    @invariant()
    def the_last_is_of_the_current_branch(self) -> None:
        """The last, and the last before it, are of the current branch."""
        if not self.model.there:
            return
        reader = Checkpointer(self.directory)
        last = reader.index_of_last_checkpoint()
        assert last in self.model.lasts()
        if last is not None and not self.model.begun and not self.stale:
            prior = max((e for e in self.model.live(self.model.tip) if e < last), default=None)
            assert reader.index_of_last_checkpoint_prior_to(last) == prior


def drive(
    monkeypatch: pytest.MonkeyPatch, *, stories: int, steps: int, derandomize: bool = True
) -> None:
    """Run the machine.

    Args:
        monkeypatch: For the clock that checkpoints are dated by.
        stories: How many.
        steps: Of each story.
        derandomize: Whether they are the same stories each time.
    """
    machines: list[TwoRuns] = []

    def make() -> TwoRuns:
        machines[:] = [TwoRuns()]
        return machines[0]

    class Clock:
        @staticmethod
        def now(zone: Any = None) -> datetime:
            return datetime.now(zone) + machines[0].offset

    monkeypatch.setattr(job, "datetime", Clock)
    run_state_machine_as_test(
        cast("type[TwoRuns]", make),
        settings=hypothesis.settings(
            max_examples=stories,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # shrinking takes hours
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
