"""Where a tree is not stored as it is: zones by name, members of an Enum as keys."""

from __future__ import annotations

import collections
import datetime as dt
import enum
from typing import Any

import pytest

from ray_imuckpt import UnsupportedStateError
from ray_imuckpt.encoding import tree
from support.trees import Color, there_and_back


class Number(enum.Enum):
    ONE = 1.0


class Listed(enum.Enum):
    A = [1]  # noqa: RUF012 - a value without a hash is the point


@pytest.mark.parametrize(
    "zone", ["Nowhere/Atlantis", "../../etc/passwd", "Europe", "", "Asia/Tokyo"]
)
def test_a_zone_that_is_unknown_or_has_other_rules_here_leaves_the_offset(zone: str) -> None:
    """The instant is exact, though the zone is not known here."""
    data = {"$": "datetime", "v": ["2026-10-25T02:30:00+01:00", 1], "zone": zone}
    back = tree.decode(data, {})
    assert back == dt.datetime(2026, 10, 25, 2, 30, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert type(back.tzinfo) is dt.timezone


@pytest.mark.parametrize(
    "value",
    [
        {Color.RED: 1, "red": 2},
        {"red", Color.RED},
        frozenset({"red", Color.RED}),
        collections.OrderedDict([("red", 1), (Color.RED, 2)]),
        collections.Counter([Color.RED, "red"]),
        {(1, Color.RED): 1, (1, "red"): 2},
        {frozenset({Color.RED}): 1, frozenset({"red"}): 2},
        {Number.ONE: 1, True: 2},
        {Listed.A: 1},
    ],
)
def test_keys_that_would_come_back_as_one_are_refused(value: Any) -> None:
    """An Enum and its value in one mapping or set, however deep."""
    with pytest.raises(UnsupportedStateError, match=r"(?s)other\['deep'\] holds .*Enum"):
        tree.encode({"deep": value}, {}, "other")


def test_keys_that_stay_apart_are_stored() -> None:
    """Two NaNs are two, an Enum beside another value is its own."""
    nans = {float("nan"), float("nan")}
    assert len(there_and_back(nans)) == 2
    assert there_and_back({Color.RED: 1, "blue": 2}) == {"red": 1, "blue": 2}
