"""Stored bytes on their way into memory that takes a box of them: a rank's part of a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ray_imuckpt.encoding.tensors.header import Piece
from ray_imuckpt.encoding.tensors.memory import byte_address, flat

Extent = Sequence[int]
"""A number for each dimension."""


class Box:
    """A run of stored bytes, as an array; those in a box of it are wanted, and go to `target`.

    Args:
        shape: Of the array, the last dimension in bytes.
        offset: Where in it the box begins.
        target: One-byte elements on any device: the box. Without any, nothing is wanted.
    """

    __slots__ = ("_target", "nbytes", "offset", "shape")

    def __init__(self, shape: Extent, offset: Extent, target: torch.Tensor) -> None:
        self.shape, self.offset = tuple(shape), tuple(offset)
        self.nbytes = math.prod(shape)
        self._target = target

    def __len__(self) -> int:
        """Return the number of stored bytes."""
        return self.nbytes

    @property
    def device(self) -> torch.device:
        """Return where the bytes go; the host, where none do."""
        return self._target.device

    def wants(self, begin: int, end: int) -> bool:
        """Return whether any of the bytes [begin, end) is wanted."""
        return bool(self._target.numel()) and _meets(
            (begin, end), self.shape, self.offset, self._target.shape
        )

    def put(self, begin: int, data: torch.Tensor) -> None:
        """Copy stored bytes to where they belong, those that are wanted.

        Args:
            begin: Which of the bytes is the first.
            data: One-dimensional, uint8, in host memory.
        """
        if self._target.numel():
            _put(self._target, self.shape, self.offset, begin, data)


class BufferedBytes:
    """The bytes of a `Box`, to be read into by way of a buffer for each slice."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def __len__(self) -> int:
        """Return the number of bytes."""
        return len(self._box)

    def __getitem__(self, run: slice) -> memoryview:
        """Return a new buffer for some of them."""
        begin, end, _ = run.indices(len(self))
        return memoryview(bytearray(end - begin))

    def put(self, begin: int, buffer: memoryview) -> None:
        """Copy a buffer that was filled to where its bytes belong, from byte `begin` on."""
        self._box.put(begin, torch.frombuffer(buffer, dtype=torch.uint8))


Slot = torch.Tensor | Box
"""Where a run of a file's bytes goes: to all elements of a contiguous tensor, or through a box."""


def nowhere(size: int) -> Box:
    """Return a slot for so many bytes that nobody wants."""
    return Box((size,), (0,), _NOTHING)


_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")


def room_view(slot: Slot) -> memoryview | BufferedBytes:
    """Return host memory that bytes are read into; see `byte_view` on who holds it."""
    if isinstance(slot, Box):
        return BufferedBytes(slot)
    return byte_address(slot)


def wants(slot: Slot, begin: int, end: int) -> bool:
    """Return whether any of the bytes [begin, end) of a slot is wanted."""
    return begin < end and (not isinstance(slot, Box) or slot.wants(begin, end))


def put(slot: Slot, begin: int, data: torch.Tensor) -> None:
    """Copy bytes in host memory to a slot, from its byte `begin` on."""
    if isinstance(slot, Box):
        slot.put(begin, data)
    else:
        flat(slot)[begin : begin + len(data)].copy_(data, non_blocking=True)


def slots(stored: Extent, at: Piece | None, target: torch.Tensor, of: Piece | None) -> list[Slot]:
    """Return where the bytes of a stored tensor go, in memory that takes a part of the whole.

    Bytes that lie in a row there as they do in the file get a slot of their own, into which they
    can be read straight.

    Args:
        stored: The shape of what is stored.
        at: Which piece of the whole tensor that is; ``None``: all of it.
        target: Contiguous, of the same dtype, on any device.
        of: Which piece of the whole tensor it takes; ``None``: all of it.
    """
    item = target.element_size()
    if not target.numel() or 0 in stored:
        return [nowhere(math.prod(stored) * item)]
    shape, begin = _in_bytes(stored, at, item)
    taken, other = _in_bytes(target.shape, of, item)
    low = [max(*pair) for pair in zip(begin, other, strict=True)]
    high = [min(a + n, b + m) for a, n, b, m in zip(begin, shape, other, taken, strict=True)]
    if any(map(int.__ge__, low, high)):
        return [nowhere(math.prod(shape))]
    view = flat(target).view(taken)
    for dimension, (start, stop, base) in enumerate(zip(low, high, other, strict=True)):
        view = view.narrow(dimension, start - base, stop - start)
    return _trimmed(shape, [start - base for start, base in zip(low, begin, strict=True)], view)


def _in_bytes(shape: Extent, piece: Piece | None, item: int) -> tuple[list[int], list[int]]:
    """Return a shape, and where it begins in the whole, the last dimension in bytes."""
    offset = [0] * len(shape) if piece is None else piece.offset
    if not shape:
        return [item], [0]
    return [*shape[:-1], shape[-1] * item], [*offset[:-1], offset[-1] * item]


def _trimmed(shape: Extent, offset: Extent, view: torch.Tensor) -> list[Slot]:
    """Return the slots of a box, with the bytes before it and behind it apart from it."""
    before, behind = 0, 0
    while True:
        row = math.prod(shape[1:])
        before += offset[0] * row
        behind += (shape[0] - offset[0] - len(view)) * row
        if len(view) > 1 or view.dim() == 1:
            break
        shape, offset, view = shape[1:], offset[1:], view[0]
    shape, offset = [len(view), *shape[1:]], [0, *offset[1:]]
    in_a_row = tuple(shape) == view.shape and view.is_contiguous()
    within: Slot = view.reshape(-1) if in_a_row else Box(shape, offset, view)
    around = nowhere(before), within, nowhere(behind)
    return [slot for slot in around if slot.nbytes]


def _meets(run: tuple[int, int], shape: Extent, offset: Extent, box: Extent) -> bool:
    """Return whether a box has bytes of a run; all in one-byte elements."""
    begin, end = run
    if begin >= end:
        return False
    row = math.prod(shape[1:])
    first = max(begin // row, offset[0])
    last = min((end - 1) // row, offset[0] + box[0] - 1)
    if len(shape) == 1 or last - first > 1:  # a row between two others is whole
        return first <= last
    return any(
        _meets((max(begin - at * row, 0), min(end - at * row, row)), shape[1:], offset[1:], box[1:])
        for at in range(first, last + 1)
    )


def _put(
    target: torch.Tensor, shape: Extent, offset: Extent, begin: int, data: torch.Tensor
) -> None:
    """Copy the bytes of a run that are in a box: the end of a row, whole rows, the begin of one."""
    end, low, high = begin + len(data), offset[0], offset[0] + len(target)
    row = math.prod(shape[1:])
    first, last = -(-begin // row), end // row
    start, stop = max(first, low), min(last, high)
    if start < stop:
        rows = data[start * row - begin : stop * row - begin].view(stop - start, *shape[1:])
        for dimension in range(1, len(shape)):
            rows = rows.narrow(dimension, offset[dimension], target.shape[dimension])
        target[start - low : stop - low].copy_(rows, non_blocking=True)
    for at in {begin // row, last}:
        a, b = max(begin, at * row), min(end, (at + 1) * row)
        if low <= at < high and 0 < b - a < row:
            inner = target[at - low]
            _put(inner, shape[1:], offset[1:], a - at * row, data[a - begin : b - begin])
