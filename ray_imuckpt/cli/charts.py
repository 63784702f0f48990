"""Curves as charts of characters, for a terminal of any width. Touches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_imuckpt.cli.curves import Curve, Curves

_MARKS = "*+ox#@%&"
_HEIGHT = 10
_LABEL = 9  # columns of the numbers at the left
_LEAST, _MOST = 16, 100  # columns of a chart


def of_curves(curves: Curves, width: int | None) -> Iterator[str]:
    """Yield a chart for each metric, with all its runs.

    Args:
        curves: The curves.
        width: How many columns there are; ``None`` for 80.
    """
    columns = max(_LEAST, min(_MOST, (80 if width is None else width) - _LABEL - 2))
    for metric in curves.metrics:
        drawn = [curve for curve in curves.curves if curve.metric == metric]
        yield metric
        yield from _chart(drawn, columns)
        if len({curve.run for curve in curves.curves}) > 1:
            yield from (f"  {_mark(n)} {curve.run}" for n, curve in enumerate(drawn))


def _chart(drawn: Sequence[Curve], columns: int) -> Iterator[str]:
    values = [point.value for curve in drawn for point in curve.points]
    positions = [point.x for curve in drawn for point in curve.points]
    low, high, left, right = min(values), max(values), min(positions), max(positions)
    grid = [[" "] * columns for _ in range(_HEIGHT)]
    for number, curve in reversed([*enumerate(drawn)]):  # the first lies on top
        cells: dict[int, list[float]] = {}
        for point in curve.points:
            cells.setdefault(_cell(point.x, left, right, columns), []).append(point.value)
        for column, found in cells.items():
            mean = sum(value / len(found) for value in found)
            grid[_HEIGHT - 1 - _cell(mean, low, high, _HEIGHT)][column] = _mark(number)
    for row, cells_of_row in enumerate(grid):
        label = {0: high, _HEIGHT - 1: low}.get(row)
        text = " " * _LABEL if label is None else f"{label:>{_LABEL}.4g}"
        yield f"{text} |{''.join(cells_of_row)}".rstrip()
    axis = "/".join(sorted({curve.axis for curve in drawn}))
    begin, end = f"{axis} {left:.6g}", f"{right:.6g}"
    yield f"{' ' * _LABEL} +{'-' * columns}"
    yield f"{' ' * _LABEL}  {begin}{end:>{max(1, columns - len(begin))}}"


def _cell(value: float, low: float, high: float, cells: int) -> int:
    """Return in which of so many cells a value lies; the middle one where all are equal."""
    if high <= low:
        return cells // 2
    share = value / (high - low) - low / (high - low)  # the difference alone may overflow
    return min(cells - 1, max(0, round(share * (cells - 1))))


def _mark(number: int) -> str:
    return _MARKS[number % len(_MARKS)]
