"""Values as lines for people. Touches nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ray_imuckpt.cli import checking, keywords
from ray_imuckpt.cli.checking import Verdict
from ray_imuckpt.cli.comparison import Change, Comparison, Difference
from ray_imuckpt.cli.contents import Facts, Parts, TensorRow
from ray_imuckpt.cli.exporting import Exported
from ray_imuckpt.cli.tables import Column, Table, width_of
from ray_imuckpt.cli.text_listing import of_metrics, short
from ray_imuckpt.migration import Imported
from ray_imuckpt.units import amount, size

_WIDTH = 120  # columns, where it is no terminal that tells
_GAP = 2  # columns between those of a table
_LEAST = 20  # columns of a value, however little room there is
_BECAME = " became "
_ONLY = "only in the "
_STATES = {checking.DAMAGED: "damaged", checking.NEWER_FORMAT: "of a newer format"}


def of_facts(facts: Facts) -> Iterator[str]:
    """Yield what a manifest says."""
    origin = "scratch" if facts.continued_from is None else f"epoch {facts.continued_from}"
    step = "" if facts.step is None else f", step {facts.step},"
    ranks = amount(facts.world_size, "rank")
    yield f"epoch {facts.epoch}{step} at {facts.url}"
    yield f"made {facts.created} by run {facts.run_id} with {ranks}"
    yield f"continued from {origin}"
    yield "written with " + ", ".join(f"{k} {v}" for k, v in facts.versions.items())
    for file in facts.files:
        yield f"  {size(file.size):>9}  {file.name}"
    yield f"metrics: {of_metrics(facts.metrics) or 'none'}"


def of_parts(
    parts: Parts, *, tensors: bool = False, width: int | None = None
) -> Iterator[str | Table]:
    """Yield what a checkpoint's files hold.

    Args:
        parts: What they hold.
        tensors: Whether to list each tensor of the model, too.
        width: To how many columns long values are shortened; ``None``: to 120.
    """
    if tensors:
        columns = Column("dtype"), Column("shape"), Column("tensor")
        rows = [(tensor.dtype, str(tensor.shape), tensor.name) for tensor in parts.model]
        yield Table(columns, tuple(rows))
    yield Table(
        (
            Column("module"),
            Column("tensors", right=True),
            Column("parameters", right=True),
            Column("size", right=True),
            Column("dtype"),
        ),
        tuple(
            (
                row.name or "(the model)",
                str(row.tensors),
                f"{row.parameters:,}",
                size(row.size),
                ", ".join(row.dtypes),
            )
            for row in parts.modules
        ),
    )
    yield f"optimizer: {parts.optimizer or 'none'}"
    entries = "1 entry" if parts.log_entries == 1 else f"{parts.log_entries} entries"
    yield f"log: {entries}"
    yield _of_other(parts, width or _WIDTH) if parts.other else "other: nothing"


def _of_other(parts: Parts, width: int) -> Table:
    """Return a table of what was passed by keyword, the values of dicts each by itself."""
    known = keywords.in_order(parts.other, parts.values, parts.objects)
    rows = [(keywords.joined(path), v) for path, v in keywords.leaves(known, 1).items()]
    room = max(width - max(width_of(name) for name, _ in [("other", ""), *rows]) - _GAP, _LEAST)
    return Table(
        (Column("other"), Column("value")),
        tuple((name, keywords.shortened(value, room)) for name, value in rows),
    )


def of_verdict(verdict: Verdict, *, by_url: bool = False) -> str:
    """Return whether a checkpoint is sound; `by_url` where its epoch does not tell which it is."""
    name = verdict.url if by_url or verdict.epoch is None else f"{verdict.epoch:>7}"
    if verdict.state == checking.SOUND:
        return f"{name}  sound"
    return f"{name}  {_STATES[verdict.state]}: {verdict.problem}"


def of_exported(exported: Exported) -> str:
    """Return what was written."""
    files = f" in {exported.shards} files" if exported.shards > 1 else ""
    return f"{exported.tensors} tensors, {size(exported.size)}{files}: {exported.file}"


def of_imported(imported: Imported) -> Iterator[str]:
    """Yield what was brought along of another program's checkpoint, and what was not."""
    yield f"checkpoint={imported.epoch}, from {imported.kind}"
    yield f"model: {imported.tensors} tensors; {size(imported.size)} in all files"
    states = "none" if imported.optimizer is None else f"of {imported.optimizer} parameters"
    yield f"optimizer: {states}"
    if imported.metrics:
        yield f"metrics: {of_metrics(imported.metrics)}"
    yield f"other: {', '.join(imported.other) or 'nothing'}"
    yield "not brought along:"
    for name, reason in imported.left.items():
        yield f"  {name}: {reason}"


def of_comparison(comparison: Comparison, width: int | None = None) -> Iterator[str]:
    """Yield the tensors that differ, and how many those are; `width` as for `of_parts`."""
    for difference in comparison.differences:
        yield f"  {difference.name}: {_of_difference(difference)}"
    for kind, changes in (("metric", comparison.metrics), ("version", comparison.versions)):
        for change in changes:
            yield f"  {kind} {change.name}: {_of_change(change, short)}"
    for change in comparison.other:
        start = f"  other {change.name}: "
        room = (width or _WIDTH) - width_of(start)
        room = room - len(f"{_ONLY}{change.only}: ") if change.only else (room - len(_BECAME)) // 2
        yield start + _of_change(change, partial(keywords.shortened, most=max(room, _LEAST)))
    one, two = comparison.first, comparison.second
    same_run = posixpath.dirname(one.url) == posixpath.dirname(two.url)
    names = (one.epoch, two.epoch) if same_run else (one.url, two.url)
    count = len(comparison.differences)
    yield f"{count} of {comparison.tensors} tensors differ between {names[0]} and {names[1]}"


def _of_difference(difference: Difference) -> str:
    first, second = difference.first, difference.second
    if first is None or second is None:
        return f"only in the {'second' if first is None else 'first'}"
    if first != second:
        return f"{_of_tensor(first)} became {_of_tensor(second)}"
    if difference.largest is None:
        return "other bytes"
    return f"largest difference {difference.largest:.6g}"


def _of_change(change: Change, text_of: Callable[[Any], str]) -> str:
    first, second = text_of(change.first), text_of(change.second)
    if change.only:
        return f"{_ONLY}{change.only}: {first if change.only == 'first' else second}"
    return f"{first}{_BECAME}{second}"


def _of_tensor(tensor: TensorRow) -> str:
    return f"torch.{tensor.dtype} {tensor.shape}"
