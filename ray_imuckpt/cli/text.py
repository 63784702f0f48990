"""Values as lines for people. Touches nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from ray_imuckpt.cli import checking, listing
from ray_imuckpt.cli.checking import Verdict
from ray_imuckpt.cli.comparison import Change, Comparison, Difference
from ray_imuckpt.cli.contents import Facts, Parts, TensorRow
from ray_imuckpt.cli.exporting import Exported
from ray_imuckpt.cli.listing import CheckpointRow, LeftoverFiles, Listing
from ray_imuckpt.cli.pruning import Pruned
from ray_imuckpt.cli.series import Series
from ray_imuckpt.units import size

_BAR = 60  # columns of the longest one
_BESIDE_BAR = 23
_BELOW_EPOCH = " " * 9
_STATES = {
    listing.DAMAGED: "damaged",
    listing.NEWER_FORMAT: "of a newer format",
    listing.UNREADABLE: "cannot be read",
}


def of_listing(listed: Listing) -> Iterator[str]:
    """Yield a table of the checkpoints, and how many there are."""
    yield f"{'epoch':>7}  {'made (UTC)':<19}  {'size':>9}  {'run':<8}  metrics"
    for row in listed.checkpoints:
        yield from _of_row(row)
    rows = listed.checkpoints
    counts = [f"{len(rows)} checkpoint(s)"]
    counts += [f"{sum(row.abandoned is True for row in rows)} of abandoned branches"]
    counts += [
        f"{count} {text}"
        for state, text in _STATES.items()
        if (count := sum(row.state == state for row in rows))
    ]
    yield ", ".join(counts)
    if listed.leftovers.files or listed.leftovers.uploads:
        yield of_leftovers(listed.leftovers)


def of_leftovers(left: LeftoverFiles) -> str:
    """Return how many leftovers there are."""
    text = f"{left.files} leftover file(s) of saves that did not end, {size(left.size)}"
    return text + (f", and {left.uploads} unfinished upload(s)" if left.uploads else "")


def of_facts(facts: Facts) -> Iterator[str]:
    """Yield what a manifest says."""
    origin = "scratch" if facts.continued_from is None else f"epoch {facts.continued_from}"
    step = "" if facts.step is None else f", step {facts.step},"
    yield f"epoch {facts.epoch}{step} at {facts.url}"
    yield f"made {facts.created} by run {facts.run_id} with {facts.world_size} rank(s)"
    yield f"continued from {origin}"
    yield "written with " + ", ".join(f"{k} {v}" for k, v in facts.versions.items())
    for file in facts.files:
        yield f"  {size(file.size):>9}  {file.name}"
    yield f"metrics: {_short(facts.metrics)}"


def of_parts(parts: Parts) -> Iterator[str]:
    """Yield what a checkpoint's files hold."""
    yield f"model: {len(parts.model)} tensors"
    for tensor in parts.model:
        yield f"  {tensor.dtype:<10} {tensor.shape!s:<16} {tensor.name}"
    yield f"optimizer: {parts.optimizer or 'none'}"
    yield f"other: {', '.join(parts.other) or 'nothing'}"
    yield f"log: {parts.log_entries} entries"


def of_verdict(verdict: Verdict, *, by_url: bool = False) -> str:
    """Return whether a checkpoint is sound; `by_url` where its epoch does not tell which it is."""
    name = verdict.url if by_url or verdict.epoch is None else f"{verdict.epoch:>7}"
    if verdict.state == checking.SOUND:
        return f"{name}  sound"
    return f"{name}  {_STATES[verdict.state]}: {verdict.problem}"


def of_pruned(pruned: Pruned) -> Iterator[str]:
    """Yield what was deleted, or would be."""
    deleted = "would delete" if pruned.dry_run else "deleted"
    yield f"{deleted} {len(pruned.epochs)}: {list(pruned.epochs)}"
    if pruned.leftovers.files or pruned.leftovers.uploads:
        yield f"{deleted} {of_leftovers(pruned.leftovers)}"


def of_exported(exported: Exported) -> str:
    """Return what was written."""
    files = f" in {exported.shards} files" if exported.shards > 1 else ""
    return f"{exported.tensors} tensors, {size(exported.size)}{files}: {exported.file}"


def of_comparison(comparison: Comparison) -> Iterator[str]:
    """Yield the tensors that differ, and how many those are."""
    for difference in comparison.differences:
        yield f"  {difference.name}: {_of_difference(difference)}"
    for kind, changes in (("metric", comparison.metrics), ("version", comparison.versions)):
        for change in changes:
            yield f"  {kind} {change.name}: {_of_change(change)}"
    one, two = comparison.first, comparison.second
    same_run = posixpath.dirname(one.url) == posixpath.dirname(two.url)
    names = (one.epoch, two.epoch) if same_run else (one.url, two.url)
    count = len(comparison.differences)
    yield f"{count} of {comparison.tensors} tensors differ between {names[0]} and {names[1]}"


def of_series(series: Series, width: int | None) -> Iterator[str]:
    """Yield a bar for each point.

    Args:
        series: At least one point.
        width: How many columns there are; ``None`` for as many as wanted.
    """
    longest = _BAR if width is None else max(8, min(_BAR, width - _BESIDE_BAR))
    values = [point.value for point in series.points]
    low, high = min(values), max(values)
    for point in series.points:
        share = (point.value - low) / (high - low) if high > low else 1.0
        bar = "#" * max(1, round(share * longest))
        yield f"{point.epoch:>7}  {point.value:>12.6g}  {bar}"


def _of_row(row: CheckpointRow) -> Iterator[str]:
    mark = "  (abandoned branch)" if row.abandoned else ""
    if row.created is None or row.size is None or row.run_id is None:
        yield f"{row.epoch:>7}  {_STATES[row.state]}: {row.problem}{mark}"
        return
    metrics = dict(row.metrics) if row.step is None else {"step": row.step, **row.metrics}
    made = row.created[:19].replace("T", " ")
    line = (
        f"{row.epoch:>7}  {made}  {size(row.size):>9}  {row.run_id[-8:]:<8}  "
        f"{_of_metrics(metrics)}{mark}"
    )
    yield line.rstrip()
    if row.problem:
        yield f"{_BELOW_EPOCH}{_STATES[row.state]}: {row.problem}"


def _of_metrics(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in metrics.items())


def _of_difference(difference: Difference) -> str:
    first, second = difference.first, difference.second
    if first is None or second is None:
        return f"only in the {'second' if first is None else 'first'}"
    if first != second:
        return f"{_of_tensor(first)} became {_of_tensor(second)}"
    if difference.largest is None:
        return "other bytes"
    return f"largest difference {difference.largest:.6g}"


def _of_change(change: Change) -> str:
    if change.first is None or change.second is None:
        which, value = (
            ("second", change.second) if change.first is None else ("first", change.first)
        )
        return f"only in the {which}: {_short(value)}"
    return f"{_short(change.first)} became {_short(change.second)}"


def _of_tensor(tensor: TensorRow) -> str:
    return f"torch.{tensor.dtype} {tensor.shape}"


def _short(value: Any) -> str:
    try:
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    except ValueError:  # an integer of more digits than Python shows
        return "(too long)"
