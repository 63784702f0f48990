"""Run directories, and what is deleted of them, as lines and tables. Touches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ray_imuckpt.cli.naming import Rule
from ray_imuckpt.cli.pruning import Cleaned, LeftoverFiles, Pruned
from ray_imuckpt.cli.rows import (
    ABANDONED,
    COMMITTED,
    CUT,
    DAMAGED,
    ELSEWHERE,
    EMPTY,
    LEFTOVER,
    MISSING,
    NEWER_FORMAT,
    UNREADABLE,
    BestRow,
    CheckpointRow,
    LeftoverRow,
    Listing,
    RunRow,
    RunsBelow,
)
from ray_imuckpt.cli.tables import BAD, FAINT, GOOD, Cell, Column, Table, joined
from ray_imuckpt.units import age, amount, size

_MOST = 12  # epochs that are named one by one


def of_listing(listed: Listing) -> Iterator[str | Table]:
    """Yield a table of the checkpoints and of what saves left, and how many there are."""
    columns = (
        Column("epoch", right=True),
        Column("age", right=True),
        Column("size", right=True),
        Column("ranks", right=True),
        Column("state"),
        Column("metrics"),
    )
    rows = [
        (row.epoch, cells)
        for row in listed.checkpoints
        for cells in _of_checkpoint(row, listed.best)
    ]
    rows += [
        (-1 if row.epoch is None else row.epoch, _of_leftover(row)) for row in listed.leftovers
    ]
    if rows:
        yield Table(columns, tuple(cells for _, cells in sorted(rows, key=lambda row: row[0])))
    yield _counted(listed)
    yield from _of_leftovers(listed.leftovers)
    yield from _of_user(listed.in_use)


def of_runs(below: RunsBelow, rule: Rule | None = None) -> Iterator[str | Table]:
    """Yield a table of the runs, and how many there are.

    Args:
        below: The runs.
        rule: By which the best checkpoint was looked for, if it was.
    """
    columns = [
        Column("run"),
        Column("checkpoints", right=True),
        Column("last", right=True),
        Column("age", right=True),
        Column("size", right=True),
        *([Column(f"best {rule.metric}", right=True)] if rule else []),
        Column("state"),
        Column("metrics of the last one"),
    ]
    if not below.runs:
        yield f"no checkpoints here, and no run below {below.url}"
        return
    rows = [cells for row in below.runs for cells in _of_run(row, best=rule is not None)]
    yield Table(tuple(columns), tuple(rows))
    if rule is not None and below.best is not None:
        best = below.best
        yield f"best {rule.metric}: {short(best.value)}, {best.run} at epoch {best.epoch}"
    left, begun = (
        sum(row.leftovers for row in below.runs),
        sum(row.uploads for row in below.runs),
    )
    yield joined(
        [
            amount(len(below.runs), "run"),
            amount(sum(row.checkpoints for row in below.runs), "checkpoint"),
            size(sum(row.size for row in below.runs)),
            f"{size(left)} of it of saves that did not end or are in flight" if left else "",
            f"{amount(begun, 'upload')} begun and not ended" if begun else "",
        ]
    )


def of_pruned(pruned: Pruned) -> Iterator[str | Table]:
    """Yield what was deleted, or would be, and what stays and why."""
    if pruned.dry_run:
        yield Table(
            (Column("epoch", right=True), Column("stays, or goes")),
            tuple(_of_judged(pruned)),
        )
    deleted = "would delete" if pruned.dry_run else "deleted"
    which = f": {', '.join(map(str, pruned.epochs[:_MOST]))}" if pruned.epochs else ""
    which += ", …" if len(pruned.epochs) > _MOST else ""
    yield (
        f"{deleted} {amount(len(pruned.epochs), 'checkpoint')} of "
        f"{len(pruned.epochs) + len(pruned.spared)}, {size(pruned.size)}{which}"
    )
    if pruned.leftovers.files or pruned.leftovers.uploads:
        yield f"{deleted} {of_leftover_files(pruned.leftovers)}"


def of_cleaned(cleaned: Cleaned) -> Iterator[str | Table]:
    """Yield what was removed, or would be, and what stays and why."""
    removed = "would remove" if cleaned.dry_run else "removed"
    rows = [(_of_save(row), _age(row.age), size(row.size), removed) for row in cleaned.removed]
    for spared in cleaned.spared:
        row = spared.leftover
        rows.append((_of_save(row), _age(row.age), size(row.size), f"stays: {spared.reason}"))
    if rows:
        columns = Column("left by"), Column("age", right=True), Column("size", right=True)
        yield Table(
            (*columns, Column("what happens" if cleaned.dry_run else "what happened")), tuple(rows)
        )
    if not cleaned.removed:
        yield "nothing to remove" + ("" if rows else ": no save has left anything here")
        return
    total = size(sum(row.size for row in cleaned.removed))
    yield f"{removed} {total} of {amount(len(cleaned.removed), 'save')}"


def of_leftover_files(left: LeftoverFiles) -> str:
    """Return how many leftovers there are."""
    text = f"{amount(left.files, 'leftover file')} of saves that did not end, {size(left.size)}"
    return text + (f", and {amount(left.uploads, 'upload')} begun" if left.uploads else "")


def of_metrics(metrics: Mapping[str, Any]) -> str:
    """Return metrics in one line."""
    return joined([f"{name}={short(value)}" for name, value in metrics.items()])


def short(value: Any) -> str:
    """Return a value as it is shown: a number with six digits."""
    try:
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    except ValueError:  # an integer of more digits than Python shows
        return "(too long)"


def _of_checkpoint(row: CheckpointRow, best: BestRow | None) -> Iterator[tuple[str | Cell, ...]]:
    metrics = dict(row.metrics) if row.step is None else {"step": row.step, **row.metrics}
    sound = row.state == COMMITTED
    abandoned = row.branch == ABANDONED
    style = (FAINT if abandoned else GOOD) if sound else BAD
    state = joined(
        [
            "" if sound and abandoned else row.state,
            "abandoned branch" if abandoned else "",
            "best" if best and best.epoch == row.epoch else "",
        ]
    )
    yield (
        str(row.epoch),
        _age(row.age),
        "" if row.size is None else size(row.size),
        "" if row.world_size is None else str(row.world_size),
        Cell(state, style),
        of_metrics(metrics),
    )
    if row.problem:
        yield ("", "", "", "", "", Cell(row.problem, BAD))


def _of_leftover(row: LeftoverRow) -> tuple[str | Cell, ...]:
    what = joined(
        [
            amount(row.files, "file") if row.files else "",
            amount(row.uploads, "upload") if row.uploads else "",
        ]
    )
    epoch = "-" if row.epoch is None else str(row.epoch)
    return epoch, _age(row.age), size(row.size), "", Cell(row.state, BAD), what


def _counted(listed: Listing) -> str:
    rows = listed.checkpoints
    states = Counter(row.state for row in rows if row.state != COMMITTED)
    abandoned = sum(row.branch == ABANDONED for row in rows)
    return joined(
        [
            amount(len(rows), "checkpoint"),
            f"{abandoned} of abandoned branches" if abandoned else "",
            *(f"{count} with {_WITH[state]}" for state, count in states.items()),
        ]
    )


_WITH = {
    DAMAGED: "a damaged manifest",
    MISSING: "a missing file",
    CUT: "a cut file",
    NEWER_FORMAT: "a newer format",
    UNREADABLE: "a manifest or file that cannot be read",
}


def _of_leftovers(rows: Iterable[LeftoverRow]) -> Iterator[str]:
    rows = list(rows)
    old = [row for row in rows if row.state == LEFTOVER]
    young = len(rows) - len(old)
    if old:
        left = size(sum(row.size for row in old))
        yield f"{left} left by saves that did not end: imuckpt clean removes them"
    if young:
        yield f"{amount(young, 'unfinished save')}, less than a day old: failed, or in flight"


def _of_user(user: Mapping[str, Any] | None) -> Iterator[str]:
    if user is not None:
        pid, host, since = (user.get(name, "?") for name in ("pid", "host", "since"))
        yield f"a run trains here: process {pid} on {host}, since {since}"


def _of_run(row: RunRow, *, best: bool) -> Iterator[tuple[str | Cell, ...]]:
    style = {COMMITTED: GOOD, ELSEWHERE: FAINT, EMPTY: FAINT}
    state = joined([row.state, "in use" if row.in_use is not None else ""])
    best_of = "" if row.best is None else f"{short(row.best.value)} at {row.best.epoch}"
    yield (
        row.name,
        str(row.checkpoints),
        "" if row.last is None else str(row.last),
        "" if row.last is None else _age(row.age),
        size(row.size),
        *([best_of] if best else []),
        Cell(state, style.get(row.state, BAD)),
        of_metrics(row.metrics),
    )
    if row.problem:
        yield (*[""] * (6 + best), Cell(row.problem, style.get(row.state, BAD)))


def _of_judged(pruned: Pruned) -> list[tuple[str | Cell, ...]]:
    rows: list[tuple[int, Cell]] = [(epoch, Cell("goes", BAD)) for epoch in pruned.epochs]
    rows += [(one.epoch, Cell(f"stays: {joined(one.reasons)}", GOOD)) for one in pruned.spared]
    return [(str(epoch), cell) for epoch, cell in sorted(rows, key=lambda row: row[0])]


def _of_save(row: LeftoverRow) -> str:
    where = "the run directory" if row.epoch is None else f"epoch {row.epoch}"
    return where if row.save_id is None else f"{where}, save {row.save_id[:8]}"


def _age(seconds: float | None) -> str:
    return "?" if seconds is None else age(seconds)
