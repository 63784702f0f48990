"""The part of a save that needs no gang: lay out, write, commit. Runs on any thread."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import torch

from ray_imuckpt import staging
from ray_imuckpt._version import __version__
from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import ImuckptError, SaveFailedError, to_wire
from ray_imuckpt.progress import Progress
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.manifest import Ancestor, FileEntry, Manifest
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import branch, commit, receipts
from ray_imuckpt.saving.collect import Label
from ray_imuckpt.saving.division import Division
from ray_imuckpt.saving.files import Files
from ray_imuckpt.saving.receipts import Patience, Receipt
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")


@dataclass(frozen=True)
class Order:
    """The order to save: all but what is to be stored.

    Attributes:
        storage: The run directory.
        run: The memory of the run; on rank 0 its parent becomes the committed checkpoint.
        label: What the checkpoint is to be known by.
        world_size: How many ranks the gang has.
        division: Who writes what.
        committed: Called with what was committed, on rank 0, on the thread that writes.
        progress: What this rank writes is counted here.
    """

    storage: Storage
    run: Run
    label: Label
    world_size: int
    division: Division
    committed: Callable[[Manifest], None]
    progress: Progress

    @property
    def files(self) -> Files:
        """Return the files that this rank writes."""
        division = self.division
        return Files(
            self.storage,
            self.label.epoch,
            division.save_id,
            division.rank,
            together=division.together,
            progress=self.progress,
        )


def job(order: Order, plan: codec.Plan, patience: Patience) -> Callable[[], Manifest]:
    """Return what writes one checkpoint, and commits it on rank 0.

    That returns the manifest: on rank 0 as committed, elsewhere with the files of this rank alone.

    Args:
        order: What is to be done.
        plan: What to store, its tensors as they are to be written.
        patience: How long rank 0 waits for the others.
    """
    files, run, together, rank = (
        order.files,
        order.run,
        order.division.together,
        order.division.rank,
    )
    draft = draft_manifest(run, order.label, order.world_size, files.save_id)
    if rank:
        return partial(_write_part, files, draft, plan, run)
    left, ranks = order.division.left_to_others(plan), range(1, order.world_size)

    def others() -> list[FileEntry]:
        if not together:
            return []
        entries = receipts.collect(files, ranks, patience)
        _check_bytes(files, entries, left)
        return entries

    def run_job() -> Manifest:
        manifest = commit_parts(files, draft, codec.layout(plan), run, others)
        if together:
            with contextlib.suppress(Exception):  # the commit stands; they are leftovers
                receipts.remove(files, ranks)
        order.committed(manifest)
        return manifest

    return run_job


def after_copy(copy: staging.Copy, save: Callable[[], Manifest], epoch: int) -> Manifest:
    """Finish the copy, then save."""
    try:
        changed = copy.finish()
    except Exception as error:
        raise SaveFailedError(
            f"The state could not be copied, nothing was written: {type(error).__name__}: {error}.",
            epoch=epoch,
            hint="Is there host memory for one more copy of the state? Save again, or with "
            "Checkpointer(..., blocking=True), which needs none.",
        ) from error
    if changed is not None:
        raise SaveFailedError(
            f"{changed} was changed while it was being copied, and not by an optimizer's step.",
            epoch=epoch,
            hint='Use snapshot="eager", or change the model only after the next step or wait().',
        )
    return save()


def _write_part(files: Files, draft: Manifest, plan: codec.Plan, run: Run) -> Manifest:
    """Write what a rank other than 0 owns, and give its receipt."""
    try:
        parts = codec.layout(plan)
        entries = files.write(parts, run)
        files.check_complete(parts, entries)
    except Exception as error:
        with contextlib.suppress(Exception):  # then rank 0 hears nothing, and gives up in time
            receipts.put(files, Receipt(files.rank, error=to_wire(error)))
        if isinstance(error, ImuckptError):
            raise
        raise commit.failed(error, files) from error
    try:
        receipts.put(files, Receipt(files.rank, entries))
    except Exception as error:
        raise commit.failed(error, files) from error
    return dataclasses.replace(draft, files=entries)


def _check_bytes(files: Files, entries: Iterable[FileEntry], left: Mapping[str, int]) -> None:
    """Raise `SaveFailedError` unless the other ranks have written the tensors that were theirs."""
    written = dict.fromkeys(left, 0)
    for entry in entries:
        if entry.part in left:
            written[entry.part] += entry.size - entry.header_size
    if written != left:
        raise SaveFailedError(
            f"Nothing was committed: the other ranks wrote {written} bytes of tensors, and were to "
            f"write {dict(left)}.",
            url=files.url,
            epoch=files.epoch,
            hint="Are the sharded tensors on the same mesh on every rank?",
        )


def commit_parts(
    files: Files,
    draft: Manifest,
    parts: Sequence[codec.EncodedFile],
    run: Run,
    others: Callable[[], Sequence[FileEntry]],
) -> Manifest:
    """Write what rank 0 owns, and commit the checkpoint, in the branch of the run.

    Args:
        files: Where it goes.
        draft: The manifest without its files and its branch.
        parts: What to write.
        run: Whose checkpoint it is.
        others: Returns the files that others have written, once they have.

    Returns:
        The manifest as committed.

    Raises:
        SaveFailedError: Nothing was committed, unless it says that it may be.
    """
    storage, undo = files.storage, None

    def guard() -> int:
        nonlocal undo
        undo = branch.prepare(storage, run, files.epoch)
        return run.branch

    try:
        committed = commit.commit(files, draft, parts, run, guard, others)
    except commit.UnknownOutcomeError:
        run.branch_begun = True  # as if it were committed: the record must stand
        raise
    except Exception:
        if undo is not None:
            _put_back(undo, storage)
        raise
    run.branch_begun, run.parent, run.foreign = True, committed, False
    run.sound.add(committed.save_id)
    branch.confirm(storage, run, committed.epoch)
    return committed


def _put_back(undo: Callable[[], None], storage: Storage) -> None:
    """Undo the record of a branch: nothing was committed, so that "the last" is what it was."""
    try:
        undo()
    except Exception as error:  # noqa: BLE001 - the save's own error counts
        logger.warning(
            "%s could not be put back after a save that failed (%s): until this run saves, the "
            'epochs after the one it continued from are not "the last". Ask for them by number.',
            join(storage.url, paths.LINEAGE),
            error,
        )


def draft_manifest(run: Run, label: Label, world_size: int, save_id: str) -> Manifest:
    """Return the manifest without its files and its branch."""
    parent = run.parent
    ancestors = parent.ancestors if parent else ()
    if parent and parent.run_id != run.id:
        ancestors = (*ancestors, Ancestor(parent.run_id, parent.epoch))
    return Manifest(
        epoch=label.epoch,
        step=label.step,
        run_id=run.id,
        save_id=save_id,
        parent=parent.origin if parent else None,
        ancestors=ancestors,
        world_size=world_size,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        versions={
            "ray_imuckpt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        metrics=tree.encode(label.metrics or {}, {}, "metrics"),
        files=(),
        branch=0,
    )
