"""Ages and names as people read them."""

from __future__ import annotations

import pytest

from ray_imuckpt import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3.0, "0 s"),  # of a clock that is ahead
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60.0, "1 min"),
        (3599.0, "59 min"),
        (3600.0, "1 h"),
        (24 * 3600.0 - 1, "23 h"),
        (24 * 3600.0, "1 d"),
        (400 * 24 * 3600.0, "400 d"),
    ],
)
def test_an_age_is_told_in_the_largest_unit(seconds: float, text: str) -> None:
    """Whole ones, none too many."""
    assert units.age(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90 s", 90), ("30min", 1800), ("1.5h", 5400), ("2d", 172800)]
)
def test_an_age_is_read_as_it_is_told(text: str, seconds: float) -> None:
    """With or without a space."""
    assert units.parsed_age(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "12", "-1d", "1 w", "1e3s", "infs"])
def test_what_is_no_age_is_refused(text: str) -> None:
    """A number alone has no unit."""
    with pytest.raises(ValueError, match="give one such as 30min, 12h or 2d"):
        units.parsed_age(text)


def test_names_are_sorted_as_people_do() -> None:
    """By the numbers in them; whatever comes first, they can be compared."""
    names = ["run10", "run9", "a/2", "a/10", "", "7", "x", "run", "²"]
    assert sorted(names, key=units.natural) == [
        *("", "7", "a/2", "a/10", "run", "run9", "run10", "x", "²")
    ]
