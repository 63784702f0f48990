"""The headers of several files of a part as one: each tensor whole. No I/O.

A tensor is whole in one file, or its pieces tile it: each element is in exactly one of them. That
is checked before there is memory for it, so that the memory of all tensors has the size of the
files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ray_imuckpt.encoding.tensors.header import Header, Piece, TensorInfo
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.threads.parallel import uncollected


class _Copy(NamedTuple):
    """A stored tensor, or a piece of one, in the file of that name."""

    file: str
    info: TensorInfo
    piece: Piece | None


class _Box(NamedTuple):
    """The indices of a piece in its tensor: from `begin` to before `end`, in each dimension."""

    begin: tuple[int, ...]
    end: tuple[int, ...]


@uncollected
def join(files: Sequence[tuple[str, Header]], url: str) -> Header:
    """Return the headers of a part's files as one, in which each tensor has its whole shape.

    A tensor that is stored in pieces lies in no file: it begins at 0, and ends at its size.

    Args:
        files: The name of each file, and its header.
        url: Where the checkpoint is, for errors.

    Raises:
        CorruptCheckpointError: A tensor is stored twice, or its pieces do not tile it or differ in
            what they say of it; or the files contradict each other. It names tensor and files.
    """
    if not files:
        return Header({}, {})
    if len(files) == 1 and not files[0][1].pieces:
        return files[0][1]
    stored: dict[str, list[_Copy]] = defaultdict(list)
    ties: dict[str, list[_Copy]] = defaultdict(list)
    for file, header in files:
        for name, info in header.tensors.items():
            under = stored if info.key[1] == name else ties
            under[name].append(_Copy(file, info, header.pieces.get(info.key[1])))
    tilings: set[tuple[object, ...]] = set()
    tensors: dict[str, TensorInfo] = {}
    for name, copies in stored.items():
        problem = _problem(copies, tilings)
        if problem:
            raise _damaged(name, copies, problem, url)
        tensors[name] = _whole(copies[0])
    for name, copies in ties.items():
        targets = {one.info.key for one in copies}
        if name in stored or len(targets) > 1:
            raise _damaged(name, [*copies, *stored[name]], "it stands for two tensors", url)
        tensors[name] = tensors[copies[0].info.key[1]]
    strided = tuple(name for name, info in tensors.items() if info.strides is not None)
    return Header(tensors, _metadata(files, url), strided=strided)


def _problem(copies: Sequence[_Copy], tilings: set[tuple[object, ...]]) -> str:
    """Return what is wrong with a tensor of which these are stored, ``""`` if nothing is.

    Args:
        copies: What there is of it, at least one.
        tilings: Shapes and pieces that are known to fit; thousands of tensors have the same few.
    """
    first = copies[0]
    if first.piece is None or any(one.piece is None for one in copies):
        return "" if len(copies) == 1 else "it is stored twice"
    shape = first.piece.shape
    boxes = []
    for _, info, piece in copies:
        if piece is None or piece.shape != shape:
            return "its pieces are of tensors of different shapes"
        if (info.dtype, info.strides) != (first.info.dtype, first.info.strides):
            return "its pieces have different dtypes or strides"
        end = tuple(map(sum, zip(piece.offset, info.shape, strict=True)))
        boxes.append(_Box(piece.offset, end))
    key = (shape, *boxes)
    if key in tilings:
        return ""
    problem = _gap_or_overlap(shape, boxes)
    if not problem:
        tilings.add(key)
    return problem


def gap_or_overlap(
    shape: tuple[int, ...], pieces: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> str:
    """Return why pieces do not cover each element of a tensor once, ``""`` if they do.

    Args:
        shape: Of the tensor.
        pieces: The offset and the shape of each.
    """
    boxes = []
    for offset, size in pieces:
        if not len(offset) == len(size) == len(shape):
            return f"a piece of shape {list(size)} lies at {list(offset)}"
        end = tuple(map(sum, zip(offset, size, strict=True)))
        if any(map(int.__gt__, end, shape)):
            return f"a piece ends at {list(end)}"
        boxes.append(_Box(offset, end))
    return _gap_or_overlap(shape, boxes)


def _gap_or_overlap(shape: tuple[int, ...], boxes: Sequence[_Box]) -> str:
    """Return why boxes within `shape` do not cover each of its elements once, ``""`` if they do.

    Boxes are gone through along the dimension in which they begin at most places, so that few of
    them are compared: those that begin before the one at hand and do not end before it.
    """
    solid = [box for box in boxes if all(map(int.__lt__, *box))]
    across = max(range(len(shape)), key=lambda d: len({b.begin[d] for b in solid}), default=0)
    near: list[_Box] = []
    for box in sorted(solid, key=lambda b: b.begin[across : across + 1]):
        near = [other for other in near if other.end[across] > box.begin[across]] if shape else near
        if any(_overlap(box, other) for other in near):
            return f"pieces overlap at {list(box.begin)}"
        near.append(box)
    held = sum(math.prod(map(int.__sub__, box.end, box.begin)) for box in solid)
    if held == math.prod(shape):
        return ""
    return f"its pieces hold {held} of {math.prod(shape)} elements"


def _overlap(one: _Box, other: _Box) -> bool:
    return all(map(int.__lt__, one.begin, other.end)) and all(map(int.__lt__, other.begin, one.end))


def _whole(copy: _Copy) -> TensorInfo:
    if copy.piece is None:
        return copy.info
    shape = copy.piece.shape
    size = math.prod(shape) * copy.info.dtype.itemsize
    return copy.info._replace(shape=shape, begin=0, end=size)


def _metadata(files: Sequence[tuple[str, Header]], url: str) -> dict[str, str]:
    """Return all metadata; of a key that is not ours the first file's."""
    metadata: dict[str, str] = {}
    for file, header in files:
        for key, text in header.metadata.items():
            if metadata.setdefault(key, text) != text and key.startswith("imuckpt."):
                raise CorruptCheckpointError(
                    f"The files of a part contradict each other: {key} in {file} is another than "
                    "in the files before it.",
                    url=url,
                )
    return metadata


def _damaged(name: str, copies: Sequence[_Copy], problem: str, url: str) -> CorruptCheckpointError:
    files = sorted({one.file for one in copies})
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return CorruptCheckpointError(
        f"The files of a part do not make up its tensor {name:.200}: {problem} ({shown}).", url=url
    )
