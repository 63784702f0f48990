"""Stored bytes on their way into memory that takes a box of them, against NumPy's slices."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import same_bytes
from ray_imuckpt.encoding.tensors import Box, Piece, flat, put, slots, wants

Box2 = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and its shape

WHOLE: dict[tuple[int, ...], list[Box2]] = {
    (): [((), ())],
    (7,): [((0,), (7,)), ((2,), (3,)), ((6,), (1,)), ((3,), (0,))],
    (5, 6): [
        ((0, 0), (5, 6)), ((1, 0), (2, 6)), ((0, 2), (5, 3)), ((2, 3), (1, 2)), ((0, 5), (5, 1)),
        ((3, 1), (2, 4)), ((4, 0), (1, 6)), ((0, 0), (0, 6)),
    ],
    (3, 4, 5): [
        ((0, 0, 0), (3, 4, 5)), ((1, 0, 0), (1, 4, 5)), ((0, 1, 0), (3, 2, 5)),
        ((0, 0, 2), (3, 4, 2)), ((1, 1, 1), (2, 2, 3)), ((2, 3, 0), (1, 1, 5)),
    ],
    (1, 4, 3): [((0, 0, 0), (1, 4, 3)), ((0, 1, 0), (1, 2, 3)), ((0, 0, 1), (1, 4, 1))],
}  # fmt: skip


def _part(box: Box2) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(*box, strict=True))


@pytest.mark.parametrize("shape", WHOLE, ids=str)
def test_a_stored_box_goes_to_where_a_wanted_box_meets_it(shape: tuple[int, ...]) -> None:
    """Every stored box, every wanted one, runs that begin and end anywhere: what a slice would."""
    for stored, wanted, dtype in itertools.product(
        WHOLE[shape], WHOLE[shape], (torch.int16, torch.complex64)
    ):
        whole = torch.arange(1, np.prod(shape, dtype=int) + 1).to(dtype).reshape(shape)
        mask = np.zeros(shape, bool)
        mask[_part(stored)] = True
        expected = np.where(mask, whole.numpy(), 0)[_part(wanted)]
        data = flat(whole[_part(stored)].contiguous())
        for step in (1, 3, 16, 1000):
            target = torch.zeros(wanted[1], dtype=dtype)
            row = slots(stored[1], Piece(stored[0], shape), target, Piece(wanted[0], shape))
            assert sum(slot.nbytes for slot in row) == len(data)
            at = 0
            for slot in row:
                cuts = [*range(0, slot.nbytes, step), slot.nbytes]
                for begin, end in pairwise(cuts):
                    run = data[at + begin : at + end]
                    before = target.clone()
                    put(slot, begin, run)
                    changed = not same_bytes(target, before)
                    assert changed <= wants(slot, begin, end)
                    if dtype is torch.int16:
                        whole_elements = step % 2 == 0 and bool(run.any())
                        assert changed or not (whole_elements and wants(slot, begin, end))
                at += slot.nbytes
            assert np.array_equal(target.numpy(), expected), (stored, wanted, step)


def test_what_lies_in_a_row_in_both_is_read_straight() -> None:
    """Rows of a matrix, a part of one row, all of a tensor; columns go through a box."""
    target = torch.zeros(4, 6)
    kinds = {
        ((0, 0), (8, 6)): [Box, torch.Tensor, Box],
        ((2, 0), (4, 6)): [torch.Tensor],
        ((0, 2), (8, 3)): [Box, Box, Box],
        ((2, 2), (4, 3)): [Box],
        ((3, 1), (1, 4)): [torch.Tensor],
        ((6, 0), (2, 6)): [Box],
    }
    for (offset, shape), expected in kinds.items():
        row = slots(shape, Piece(offset, (8, 6)), target, Piece((2, 0), (8, 6)))
        assert [type(slot) for slot in row] == expected, (offset, shape)
    (outside,) = slots((2, 6), Piece((6, 0), (8, 6)), target, Piece((2, 0), (8, 6)))
    assert not wants(outside, 0, outside.nbytes)
    (nothing,) = slots((8, 6), None, torch.empty(0), Piece((0, 0), (8, 6)))
    assert not wants(nothing, 0, nothing.nbytes)


def test_a_chunk_between_wanted_rows_is_not_wanted() -> None:
    """Of a column nothing is wanted between two rows, so that nothing is read there."""
    row = slots((4, 100), None, torch.zeros(4, 10), Piece((0, 40), (4, 100)))
    wanted = [wants(row[0], begin, begin + 20) for begin in range(0, 1600, 20)]
    assert sum(wanted) == 8
    assert wanted[8:10] == [True, True]
