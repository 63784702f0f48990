"""The rows of a log as a table for people, and as CSV for programs. Touches nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from ray_imuckpt.cli.logs import Row, number
from ray_imuckpt.cli.tables import Column, Table
from ray_imuckpt.cli.text_listing import short


def of_log(table: Sequence[Row], columns: Sequence[str]) -> Table:
    """Return some columns of a log as a table; what a row lacks is empty."""
    numeric = {c: all(number(row[c]) is not None for row in table if c in row) for c in columns}
    return Table(
        tuple(Column(name, right=numeric[name]) for name in columns),
        tuple(tuple(_shown(row[c]) if c in row else "" for c in columns) for row in table),
    )


def csv_of(table: Sequence[Row], columns: Sequence[str]) -> str:
    """Return some columns of a log as CSV, with every digit of its numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_in_full(row[c]) if c in row else "" for c in columns] for row in table)
    return file.getvalue()


def _shown(value: Any) -> str:
    found = number(value)
    return short(value if found is None or type(value) is int else found)


def _in_full(value: Any) -> Any:
    if type(value) in {int, float, str}:
        return value
    found = number(value)
    return short(value) if found is None else found
