"""What is said where ranks differ, on a gang that is made up; real ones are in test_gang.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from ray_imuckpt.agreement import agreement
from ray_imuckpt.agreement.agreement import Traits, agreed
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone


class MadeUp(Alone):
    """Rank 0 of a gang whose others hold what they are given."""

    def __init__(self, mine: Traits, *others: Traits) -> None:
        self.world_size = 1 + len(others)
        self._mine = mine
        self._others = others
        self.exchanges = 0

    def all_gather(self, payload: bytes) -> list[bytes]:
        self.exchanges += 1
        if self.exchanges == 1:
            return [payload, *(b"." + other.digests() for other in self._others)]
        mine = json.loads(payload)
        kind = next(kind for kind, held in self._mine.kinds().items() if held == mine)
        return [payload, *(agreement._encoded(other.kinds()[kind]) for other in self._others)]


def hold(mine: Traits, *others: Traits) -> int:
    """Compare, and return how many exchanges it took."""
    transport = MadeUp(mine, *others)
    assert agreed(Gang(transport), "checkpoint", lambda: ("mine", mine)) == "mine"
    return transport.exchanges


def test_a_gang_that_agrees_exchanges_once() -> None:
    """Digests go with the message that is sent anyway, whatever the order of names."""
    mine = Traits({"epoch": 1, "model": "Net"}, {"a": "(1,)"}, {"a": "cpu:1"}, {"b": "cpu:2"})
    other = Traits({"model": "Net", "epoch": 1}, {"a": "(1,)"}, {"a": "cpu:1"}, {"b": "cpu:2"})
    assert hold(mine, mine, other) == 1


@pytest.mark.parametrize(
    ("kind", "mine", "other", "told"),
    [
        ("tensors", {"a": "(1,)"}, {"a": "(2,)"}, "a is (1,) on rank 0 and (2,) on ranks 1, 2"),
        ("tensors", {"a": "x", "b": "y"}, {"a": "x"}, "b is y on rank 0 and not there on ranks"),
        ("values", {"a": "cpu:1"}, {"a": "cpu:2"}, "stored for all: a on ranks 1, 2"),
    ],
)
def test_what_differs_is_named_with_the_ranks(
    kind: str, mine: Mapping[str, Any], other: Mapping[str, Any], told: str
) -> None:
    """One more exchange, and an error that names tensors and ranks, and the way out."""
    theirs = Traits(**{kind: other})
    with pytest.raises(StateMismatchError) as raised:
        hold(Traits(**{kind: mine}), theirs, theirs)
    assert told in str(raised.value)
    assert "per_rank" in str(raised.value)
    assert raised.value.rank == 1


def test_many_tensors_that_differ_are_counted() -> None:
    """An error names five of them."""
    mine, other = ({f"t{i}": f"cpu:{i + by}" for i in range(9)} for by in (0, 1))
    with pytest.raises(StateMismatchError, match="t4 on rank 1; and 4 more"):
        hold(Traits(values=mine), Traits(values=other))


def test_checksums_of_unlike_devices_are_not_compared() -> None:
    """A rank whose tensors are elsewhere has not been shown to differ."""
    assert hold(Traits(values={"a": "cpu:1"}), Traits(values={"a": "cuda:2"})) == 2


def test_a_rank_that_has_not_looked_is_not_held_to_differ() -> None:
    """The same objects are compared once; another rank may have been given new ones."""
    some, nothing = Traits(values={"a": "cpu:1"}), Traits()
    assert hold(some, nothing) == 2
    assert hold(some, some, nothing) == 2


def test_arguments_that_differ_are_a_plain_value_error() -> None:
    """It names the argument and both ranks."""
    with pytest.raises(ValueError, match="epoch is 1 on rank 0 and 2 on rank 1"):
        hold(Traits({"epoch": 1}), Traits({"epoch": 2}))
