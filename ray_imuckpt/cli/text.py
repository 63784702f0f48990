"""Values as lines for people. Touches nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from ray_imuckpt.cli import checking
from ray_imuckpt.cli.checking import Verdict
from ray_imuckpt.cli.comparison import Change, Comparison, Difference
from ray_imuckpt.cli.contents import Facts, Parts, TensorRow
from ray_imuckpt.cli.exporting import Exported
from ray_imuckpt.cli.tables import Column, Table
from ray_imuckpt.cli.text_listing import of_metrics, short
from ray_imuckpt.migration import Imported
from ray_imuckpt.units import size

_STATES = {checking.DAMAGED: "damaged", checking.NEWER_FORMAT: "of a newer format"}


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
    yield f"metrics: {of_metrics(facts.metrics) or 'none'}"


def of_parts(parts: Parts, *, tensors: bool = False) -> Iterator[str | Table]:
    """Yield what a checkpoint's files hold; `tensors`: each of the model's, too."""
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
    yield f"other: {', '.join(parts.other) or 'nothing'}"
    yield f"log: {parts.log_entries} entries"


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
        return f"only in the {which}: {short(value)}"
    return f"{short(change.first)} became {short(change.second)}"


def _of_tensor(tensor: TensorRow) -> str:
    return f"torch.{tensor.dtype} {tensor.shape}"
