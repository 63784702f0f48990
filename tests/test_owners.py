"""Who writes what of a save that all ranks write together: the rule, by tables."""

from __future__ import annotations

from collections import Counter

import pytest

from ray_imuckpt.saving.owners import Held, Position, owners

Rows = list[list[Position | None]]

FSDP: Rows = [[(0,)], [(1,)], [(2,)], [(3,)]]
HYBRID: Rows = [[(0,)], [(1,)], [(0,)], [(1,)]]  # a mesh of 2 x 2, sharded along its second
FSDP_AND_TP: Rows = [  # over the first dimension, over the second, over both, of a mesh of 2 x 2
    [(0,), (0,), (0, 0)], [(0,), (1,), (0, 1)], [(1,), (0,), (1, 0)], [(1,), (1,), (1, 1)],
]  # fmt: skip
A_HALF: Rows = [[(0,)], [(1,)], [None], [None]]  # a mesh of the first two of four ranks


def shared_out(held: list[Held], positions: Rows, burdens: list[int] | None = None) -> list[str]:
    """Return the keys that each rank writes, in one word."""
    owned = owners(held, positions, burdens or [0] * len(positions))
    return ["".join(sorted(keys)) for keys in owned]


@pytest.mark.parametrize(
    ("held", "positions", "expected"),
    [
        ([Held("a", 8, 0)], FSDP, ["a", "a", "a", "a"]),
        ([Held("a", 8, 0), Held("b", 8, 0)], HYBRID, ["a", "a", "b", "b"]),
        ([Held("a", 8, 0)], HYBRID, ["a", "a", "", ""]),
        ([Held("a", 8, 2)], FSDP_AND_TP, ["a", "a", "a", "a"]),
        ([Held("a", 8, 0), Held("b", 8, 1)], FSDP_AND_TP, ["ab", "b", "a", ""]),
        ([Held("a", 8, 0), Held("b", 2)], A_HALF, ["a", "a", "b", ""]),
        ([Held("a", 4), Held("b", 3), Held("c", 3), Held("d", 2)], [[], []], ["ad", "bc"]),
        ([Held("b", 4), Held("a", 4)], [[], []], ["a", "b"]),
        ([Held("a", 0), Held("b", 0, 0)], FSDP, ["ab", "", "", ""]),
        ([Held("a", 9), Held("b", 1, 0)], HYBRID, ["a", "b", "b", ""]),
        ([], [[], []], ["", ""]),
    ],
)
def test_each_piece_has_one_owner_among_those_that_hold_it(
    held: list[Held], positions: Rows, expected: list[str]
) -> None:
    """Sharded, replicated, both, without elements, on some ranks only; ties go to the lowest."""
    assert shared_out(held, positions) == expected


def test_what_ranks_write_besides_counts() -> None:
    """A rank that has much of its own gets less of what all hold."""
    held = [Held(name, 10) for name in "abcd"]
    assert shared_out(held, [[], []], [25, 0]) == ["d", "abc"]


def test_shares_are_even_and_nothing_is_written_twice() -> None:
    """A thousand replicated and sharded tensors of all sizes over FSDP and tensor parallelism."""
    spreads = (None, 0, 1, 2)
    held = [Held(f"{i}", (i * 7919) % 1000, spreads[i % 4]) for i in range(1000)]
    owned = owners(held, FSDP_AND_TP, [0] * 4)
    pieces = {None: 1, 0: 2, 1: 2, 2: 4}
    counts = Counter(key for keys in owned for key in keys)
    assert all(counts[h.key] == (pieces[h.spread] if h.size else 1) for h in held)
    sizes = {h.key: -(-h.size // pieces[h.spread]) for h in held}
    loads = [sum(sizes[key] for key in keys) for keys in owned]
    assert max(loads) - min(loads) < 1000
