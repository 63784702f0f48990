"""Checksums that ranks compare: they tell values apart, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ray_imuckpt.encoding.tensors.dtypes import _STORABLE
from ray_imuckpt.state import checksums

BOTH = [checksums._on_host, checksums._on_device]


@pytest.mark.parametrize("checksum", BOTH)
def test_equal_values_have_equal_checksums_whatever_their_strides(
    checksum: Callable[[torch.Tensor], str],
) -> None:
    """A transposed or sliced tensor is what its contiguous copy is."""
    tensor = torch.arange(60.0).reshape(3, 4, 5)
    for view in (tensor, tensor.permute(2, 0, 1), tensor[:, 1:3], tensor[1, 2, 3], tensor[:0]):
        assert checksum(view) == checksum(view.clone(memory_format=torch.contiguous_format))
    parameter = torch.nn.Parameter(tensor)
    assert checksum(parameter) == checksum(tensor)


@pytest.mark.parametrize("checksum", BOTH)
@pytest.mark.parametrize("dtype", sorted(_STORABLE, key=str), ids=str)
def test_one_other_bit_anywhere_is_another_checksum(
    checksum: Callable[[torch.Tensor], str], dtype: torch.dtype
) -> None:
    """Of every dtype, at every place, also where the bytes are no whole number of words."""
    tensor = torch.zeros(13, dtype=torch.uint8).repeat_interleave(16)[: 13 * dtype.itemsize]
    seen = {checksum(tensor.view(dtype))}
    for place in range(len(tensor)):
        tensor[place] = 1
        seen.add(checksum(tensor.view(dtype)))
        tensor[place] = 0
    assert len(seen) == len(tensor) + 1


@pytest.mark.parametrize("checksum", BOTH)
def test_pieces_and_places_count(
    checksum: Callable[[torch.Tensor], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanged elements and pieces are told apart; constants are, too."""
    monkeypatch.setattr(checksums, "_PIECE", 64)
    row = torch.arange(100, dtype=torch.int64)
    swapped = row.clone()
    swapped[[1, 2]] = row[[2, 1]]
    moved = torch.cat([row[8:16], row[:8], row[16:]])
    constants = [torch.full((100,), value) for value in range(5)]
    sums = [checksum(tensor) for tensor in (row, swapped, moved, *constants)]
    assert len(set(sums)) == len(sums)


def test_checksums_begin_with_the_kind_of_device() -> None:
    """Those of unlike devices are not to be compared, and can be told."""
    assert checksums.checksums({"a": torch.ones(3), "b": torch.zeros(3)}).keys() == {"a", "b"}
    assert checksums.checksums({"a": torch.ones(3)})["a"].startswith("cpu:")
