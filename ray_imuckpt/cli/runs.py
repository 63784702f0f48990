"""The rows of `ls` of a directory above runs: one for each, trials of Ray Tune among them.

One listing of all that is below; of each run the record of branches and the manifest of its last
checkpoint, or of all where the best one is asked for. Imports nothing that imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace

from ray_imuckpt.cli import directories, listing
from ray_imuckpt.cli.directories import RunFiles
from ray_imuckpt.cli.naming import BEST, NAME, Rule
from ray_imuckpt.cli.rows import (
    ELSEWHERE,
    UNREADABLE,
    BestRunRow,
    RunRow,
    RunsBelow,
)
from ray_imuckpt.errors import ImuckptError
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.metrics import metrics_of
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.repository.pointers import pointed_at
from ray_imuckpt.storage import Entry, Storage
from ray_imuckpt.storage.names import join
from ray_imuckpt.threads import parallel
from ray_imuckpt.units import natural


def rows_of(
    storage: Storage,
    files_of: Mapping[str, RunFiles],
    best: Rule | None = None,
    order: str = NAME,
) -> RunsBelow:
    """Return the runs below a directory; one that cannot be read is a row that says so.

    Args:
        storage: The directory.
        files_of: The files of each, by its name.
        best: By which rule to tell the best checkpoint of each, and of all.
        order: In which order, as `naming` calls it: by name, by best, which needs that rule, or by
            age, the youngest first; what has no such number comes last.
    """
    below = sorted(files_of.items(), key=lambda run: natural(run[0]))
    rows: list[RunRow | None] = [None] * len(below)

    def look(index: int) -> None:
        name, files = below[index]
        run = storage.child(name) if name else storage
        row = RunRow(name or ".", join(storage.url, name), size=_size(files.entries))
        try:
            rows[index] = _looked_into(run, files, row, best)
        except (ImuckptError, OSError) as error:
            problem = error.message if isinstance(error, ImuckptError) else str(error)
            rows[index] = replace(row, state=UNREADABLE, problem=problem)

    parallel.each(look, len(below))
    known = [row for row in rows if row is not None]
    bests = (
        BestRunRow(row.name, *astuple(row.best)) for row in _in_order(known, BEST, best) if row.best
    )
    return RunsBelow(
        storage.url,
        tuple(_in_order(known, order, best)),
        next(bests, None),
    )


def _in_order(rows: Sequence[RunRow], order: str, best: Rule | None) -> list[RunRow]:
    """Return rows, which are in the order of their names, in another; see `rows_of`."""
    sign = -1 if best is not None and best.mode == "max" else 1

    def rank(row: RunRow) -> float:
        if order == BEST:
            return math.inf if row.best is None else sign * row.best.value
        return math.inf if row.age is None else row.age

    return [*rows] if order == NAME else sorted(rows, key=rank)


def _looked_into(run: Storage, files: RunFiles, row: RunRow, best: Rule | None) -> RunRow:
    catalog = Catalog(run)
    epochs = tuple(sorted(files.epochs))
    if not run.waits:  # it costs little, and sees what lies behind a link
        epochs = tuple(catalog.committed())
    left = listing.leftover_rows(run, files.entries, files.uploads)
    row = replace(
        row,
        checkpoints=len(epochs),
        leftovers=sum(save.size for save in left),
        uploads=sum(save.uploads for save in left),
        in_use=listing.user_of(run),
    )
    if not epochs:
        return _pointing(run, files.pointers, row) if files.pointers else row
    names = {entry.name for entry in files.entries}
    record = catalog.record() if paths.LINEAGE in names else None
    read: dict[int, Manifest] = {}
    current = catalog.current_branch(overview=Overview(record, epochs), read=read)
    last = next(current, None)
    if last is None:
        return row
    row = _with_last(run, files, row, last, read.get(last))
    if best is None:
        return row
    return replace(row, best=listing.best_row(run, [last, *current], best, read))


def _with_last(
    run: Storage, files: RunFiles, row: RunRow, epoch: int, seen: Manifest | None
) -> RunRow:
    sizes = {entry.name: entry.size for entry in files.entries}
    last = listing.checkpoint_row(run, epoch, sizes, seen)
    if last is None:  # deleted meanwhile
        return row
    return replace(
        row,
        state=last.state,
        problem=last.problem,
        last=epoch,
        created=last.created,
        age=last.age,
        metrics=last.metrics,
    )


def _pointing(run: Storage, pointers: Sequence[str], row: RunRow) -> RunRow:
    """Return the row of a trial whose checkpoints are elsewhere: what its last pointer leads to."""
    target = pointed_at(run.child(max(pointers, key=natural)), directories.opening())
    row = replace(row, state=ELSEWHERE)
    if target is None:  # it has gone by now
        return row
    row = replace(row, problem=f"its checkpoints are in {target.parent().url}")
    try:
        data = target.get(paths.MANIFEST)
    except FileNotFoundError:
        return row
    manifest = Manifest.from_bytes(data, join(target.url, paths.MANIFEST))
    age = listing.age_of(manifest.created)
    return replace(
        row,
        last=manifest.epoch,
        created=manifest.created,
        age=age,
        metrics=metrics_of(manifest),
    )


def _size(entries: Iterable[Entry]) -> int:
    """Return the bytes of files, those of several names once."""
    files = {entry.name if entry.inode is None else entry.inode: entry.size for entry in entries}
    return sum(files.values())
