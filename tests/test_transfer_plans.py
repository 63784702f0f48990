"""How transfers are cut, so that no connection works while the others wait."""

from __future__ import annotations

import math

import pytest

from ray_imuckpt.storage import plans
from ray_imuckpt.storage.engines.protocol import MIB


@pytest.mark.parametrize(
    "sizes",
    [
        (200_000_000, 100_000_000, 2_000, 100),
        (400_000_000, 200_000_000, 5_000),
        (67_000_001, 67_000_001, 67_000_001),
    ],
)
def test_the_last_parts_of_files_do_not_begin_another_round(sizes: tuple[int, ...]) -> None:
    """So many parts as all connections send in whole rounds, whatever is left of each file."""
    size = plans.part_size(sizes, 16, 5 * MIB, 16 * MIB)
    rounds = math.ceil(sum(sizes) / (16 * plans.even(sum(sizes), 16, 5 * MIB, 16 * MIB)))
    assert sum(math.ceil(of / size) for of in sizes) <= 16 * rounds
    assert 5 * MIB <= size <= 16 * MIB


def test_parts_are_no_larger_than_an_engine_likes() -> None:
    """Where no allowed size saves the round, the round is paid for, and not memory."""
    sizes = [16 * 16 * MIB - 1, 1]
    assert plans.part_size(sizes, 16, 5 * MIB, 16 * MIB) == 16 * MIB


def test_an_object_has_no_more_parts_than_s3_allows() -> None:
    """10,000 parts, of whatever size that takes."""
    size = plans.part_size([10**12], 16, 5 * MIB, 16 * MIB)
    assert math.ceil(10**12 / size) <= 10_000
