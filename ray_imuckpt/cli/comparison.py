"""The differences that `diff` shows. Reads the chunks of two models that differ, and trees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ray_imuckpt.cli import keywords
from ray_imuckpt.cli.contents import TensorRow, tensor_row
from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.encoding.tensors import TensorInfo
from ray_imuckpt.loading.stored import LoadedCheckpoint

_SLICE = (
    4 * 1024 * 1024
)  # bytes that are compared at once: whole elements, and chunks of whole slices
_BLOCK = 16 * 1024  # elements that are subtracted at once: so few stay in the processor's caches


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both.

    Attributes:
        name: Its name.
        first: What it is in the first checkpoint, ``None`` if it is not there.
        second: What it is in the second one.
        largest: The largest difference of two values, where dtype and shape are the same, and can
            be subtracted.
    """

    name: str
    first: TensorRow | None
    second: TensorRow | None
    largest: float | None = None


@dataclass(frozen=True)
class Change:
    """A metric, a value, or the version of a package, that is not the same in both.

    Attributes:
        name: Its name.
        first: What it is in the first checkpoint, ``None`` if it is not there.
        second: What it is in the second one.
        only: ``first`` or ``second`` where it is in that one alone, else ``""``.
    """

    name: str
    first: Any
    second: Any
    only: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints: its epoch, and the path or URL of its directory."""

    epoch: int
    url: str


@dataclass(frozen=True)
class Comparison:
    """All differences of two checkpoints.

    Attributes:
        first: The first one.
        second: The second one.
        tensors: How many names of tensors there are in both together.
        differences: The tensors that are not the same, by name.
        metrics: The metrics that are not.
        other: What was passed by keyword and is not: values, each by itself where a name stands for
            several; objects by their class, and tensors by dtype and shape, alone.
        versions: The packages that wrote them, where these are not.
    """

    first: Side
    second: Side
    tensors: int
    differences: tuple[Difference, ...]
    metrics: tuple[Change, ...]
    other: tuple[Change, ...]
    versions: tuple[Change, ...]


def compare(first: LoadedCheckpoint, second: LoadedCheckpoint) -> Comparison:
    """Return how two checkpoints, of one run or of two, differ, their models byte by byte.

    Chunks that have the same checksum are equal as they were committed, and are not read. The
    memory of a few chunks is needed, however large the models are.

    Raises:
        CorruptCheckpointError: A header or a byte that had to be read is damaged.
        CheckpointChangedError: One was saved anew, or deleted, meanwhile.
    """
    models = Weights(first), Weights(second)
    names = dict.fromkeys([*models[0].in_order(), *models[1].in_order()])
    differences = (_difference(name, *models) for name in names)
    manifests = first.manifest, second.manifest
    return Comparison(
        Side(first.epoch, first.url),
        Side(second.epoch, second.url),
        len(names),
        tuple(sorted((d for d in differences if d is not None), key=lambda d: d.name)),
        # As they are stored: values of any type can be compared there.
        _changes(manifests[0].metrics, manifests[1].metrics, first.metrics, second.metrics),
        _changes_of_other(first, second),
        _changes(*[manifest.versions for manifest in manifests] * 2),
    )


def _changes(
    stored: Mapping[str, Any],
    other: Mapping[str, Any],
    shown: Mapping[str, Any],
    other_shown: Mapping[str, Any],
) -> tuple[Change, ...]:
    """Return which names stand for something else in `stored` than in `other`."""
    absent = object()
    return tuple(
        _change(name, name, shown, other_shown)
        for name in sorted(stored.keys() | other.keys())
        if stored.get(name, absent) != other.get(name, absent)
    )


def _changes_of_other(first: LoadedCheckpoint, second: LoadedCheckpoint) -> tuple[Change, ...]:
    """Return which values that were passed by keyword differ, each by itself."""
    one, two = (keywords.leaves(keywords.shown(side.saved_state)) for side in (first, second))
    return tuple(
        _change(keywords.joined(path), path, one, two)
        for path in sorted(one.keys() | two.keys())
        if (path in one) is not (path in two) or not keywords.same(one[path], two[path])
    )


def _change(name: str, key: Any, one: Mapping[Any, Any], two: Mapping[Any, Any]) -> Change:
    """Return what `key` stands for in two mappings, one of which may lack it."""
    only = "second" if key not in one else "first" if key not in two else ""
    return Change(name, one.get(key), two.get(key), only)


def _difference(name: str, first: Weights, second: Weights) -> Difference | None:
    info, other = first.tensors.get(name), second.tensors.get(name)
    row = None if info is None else tensor_row(name, info)
    other_row = None if other is None else tensor_row(name, other)
    if info is None or row != other_row:
        return Difference(name, row, other_row)
    differs, largest = False, None
    for begin, end in _slices(info):
        if first.seal(name, begin, end) == second.seal(name, begin, end):
            continue
        one, two = first.read(name, begin, end), second.read(name, begin, end)
        if one != two:
            differs, largest = True, _larger(largest, _distance(one, two, info.dtype))
    return Difference(name, row, other_row, largest) if differs else None


def _slices(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Yield the bytes [begin, end) of each slice of a tensor, which end where chunks end.

    No element is cut: where one lies across such an end, as no file of ours has it, slices begin
    with the tensor.
    """
    size = info.end - info.begin
    begin = -(info.begin % _SLICE) if info.begin % info.dtype.itemsize == 0 else 0
    for start in range(begin, size, _SLICE) if size else ():
        yield max(start, 0), min(start + _SLICE, size)


def _distance(one: bytearray, two: bytearray, dtype: torch.dtype) -> float | None:
    """Return the largest difference of two values; ``None`` where they cannot be subtracted."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    largest = None
    try:
        a, b = (torch.frombuffer(data, dtype=dtype) for data in (one, two))
        for at in range(0, len(a), _BLOCK):
            block = slice(at, at + _BLOCK)
            largest = _larger(largest, _distance_of_block(a[block].to(wide), b[block].to(wide)))
    except (RuntimeError, TypeError, ValueError):  # torch knows the dtype, and no values of it
        return None
    return largest


def _distance_of_block(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the largest difference; equal values, also infinite or no numbers, have none."""
    largest = (one - two).abs().max().item()
    if math.isnan(largest):
        same = (one == two) | (one.isnan() & two.isnan())
        largest = (one - two).abs().masked_fill(same, 0.0).max().item()
    return float(largest)


def _larger(one: float | None, two: float | None) -> float | None:
    """Return the larger of two distances; one that is no number counts as the largest."""
    if one is None or two is None:
        return two if one is None else one
    return one if math.isnan(one) or one > two else two
