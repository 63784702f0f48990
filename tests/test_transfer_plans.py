"""How transfers are cut, so that no connection works while the others wait."""

from __future__ import annotations

import math

import pytest
import torch

from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.encoding.tensors import byte_view
from ray_imuckpt.storage import open_storage, plans
from ray_imuckpt.storage.engines.protocol import MIB
from tools.simulated_store import SimulatedStore


def cut(sizes: list[int], least: int = 5 * MIB, most: int = 16 * MIB) -> tuple[list[int], int]:
    """Return the sizes of the parts of files, and how many parts all files have that take time."""
    parts = plans.part_sizes(sizes, 16, least, most)
    pairs = zip(sizes, parts, strict=True)
    return parts, sum(math.ceil(size / part) for size, part in pairs if size > MIB)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ([200_000_000, 100_000_000, 2_000, 100], 0.98),
        ([1_200_000_000, 600_000_000, 5_000], 0.99),
        ([67_000_001, 67_000_001, 67_000_001], 0.93),
        ([250_000_000, 17_000_000], 0.96),
        ([100_000_000], 1.0),
    ],
)
def test_all_connections_end_together(sizes: list[int], share: float) -> None:
    """Whole rounds of parts, whatever is left of each file, the largest hardly above the mean."""
    parts, count = cut(sizes)
    rounds = math.ceil(count / 16)
    assert sum(sizes) / (16 * rounds * max(parts)) >= share
    assert rounds <= math.ceil(sum(sizes) / (16 * 16 * MIB)) + 1
    assert min(parts) >= 5 * MIB
    assert max(parts) <= 16 * MIB


def test_parts_are_no_larger_than_an_engine_likes() -> None:
    """Where no allowed size saves a round, it is paid for, and not memory; all share it evenly."""
    parts, count = cut([16 * 16 * MIB, 10 * MIB])
    assert max(parts) <= 16 * MIB
    assert 16 < count <= 32
    assert max(parts) <= 9 * MIB


def test_an_object_has_no_more_parts_than_s3_allows() -> None:
    """10,000 parts, of whatever size that takes; no part but the last is below 5 MiB."""
    assert cut([10**12])[1] <= 10_000
    assert cut([6 * MIB])[0] == [5 * MIB]
    assert cut([])[0] == []


@pytest.mark.parametrize(("transposed", "parts"), [(True, 6), (False, 9)])
def test_what_is_copied_is_sent_in_whole_chunks(
    simulated_store: SimulatedStore, transposed: bool, parts: int
) -> None:
    """A part holds on to all of each chunk that it has bytes of: to one, then, of 8 MiB."""
    tensor = torch.zeros(1000, 10_490)
    content = Chunks([byte_view(tensor.t() if transposed else tensor)], owner=tensor)
    storage = open_storage("s3://bucket/run", simulated_store.options)
    storage.write("a", content, lambda _index, _views: None)
    assert simulated_store.report().requests["upload part"] == parts
