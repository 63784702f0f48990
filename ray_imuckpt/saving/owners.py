"""Owners: the ranks that write what several hold. A rule alone: no I/O, no collective.

Every rank calculates it from the same facts, so that all come to the same without asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Position = tuple[int, ...]
"""Tells which piece of a tensor a rank holds (`ray_imuckpt.state.pieces.place_in_mesh`)."""


class Held(NamedTuple):
    """A tensor that ranks hold, whole or in pieces.

    Attributes:
        key: Its name in the whole checkpoint.
        size: Bytes, of all of it.
        spread: Which way of being spread over the ranks it has; ``None``: every rank holds all.
    """

    key: str
    size: int
    spread: int | None = None


class _Box(NamedTuple):
    """A piece of a tensor, or all of it, and the ranks that hold it."""

    size: int
    key: str
    holders: Sequence[int]


def owners(
    held: Sequence[Held], positions: Sequence[Sequence[Position | None]], burdens: Sequence[int]
) -> list[frozenset[str]]:
    """Return for each rank the keys of the tensors of which it writes what it holds.

    Each piece has one owner. What only one rank holds is counted first; of the rest the largest
    goes first, to the one of its holders that has the least to write, the lowest of these.

    Args:
        held: The tensors.
        positions: For each rank its piece in each way of being spread; ``None``: it has none.
        burdens: Bytes that each rank writes besides.
    """
    everyone = range(len(positions))
    groups = [_groups(positions, spread) for spread in range(len(positions[0]))]
    alone = [all(len(ranks) == 1 for ranks in holders) for holders in groups]
    loads = list(burdens)
    owned: list[set[str]] = [set() for _ in everyone]
    boxes = []
    settled: dict[int, list[Held]] = {}
    for one in held:
        key, size, spread = one
        holders: Sequence[Sequence[int]] = [everyone] if spread is None else groups[spread]
        if not size:  # nobody holds a piece of nothing
            holders = [everyone[:1]]
        elif spread is not None and alone[spread]:
            settled.setdefault(spread, []).append(one)
            continue
        boxes += [_Box(-(-size // len(holders)), key, ranks) for ranks in holders]
    for spread, tensors in settled.items():  # a thousand tensors on a thousand ranks, say
        keys = {key for key, _, _ in tensors}
        each = sum(-(-size // len(groups[spread])) for _, size, _ in tensors)
        for (rank,) in groups[spread]:
            owned[rank] |= keys
            loads[rank] += each
    boxes.sort(key=lambda box: (len(box.holders) > 1, -box.size, box.key))
    for size, key, ranks in boxes:
        if len(ranks) == len(loads):
            owner = loads.index(min(loads))
        else:
            owner = min(ranks, key=loads.__getitem__)
        owned[owner].add(key)
        loads[owner] += size
    return [frozenset(keys) for keys in owned]


def _groups(positions: Sequence[Sequence[Position | None]], spread: int) -> list[list[int]]:
    """Return the ranks that hold the same piece, each group in order, the lowest rank's first."""
    groups: dict[Position, list[int]] = {}
    for rank, row in enumerate(positions):
        position = row[spread]
        if position is not None:
            groups.setdefault(position, []).append(rank)
    return list(groups.values())
