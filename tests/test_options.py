"""The values that steer a `Checkpointer`: they check themselves when they are made, and travel."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import timedelta
from typing import Any

import pytest

from ray_imuckpt.options import Best, Retention, Retries, Saving


@pytest.mark.parametrize(
    "value",
    [
        Retention(keep_last=3, keep_every=10, keep_best=("loss", "min", 2)),
        Saving(save_every=5, blocking=True, snapshot="overlap"),
        Retries(attempts=3, deadline=timedelta(minutes=1)),
    ],
)
def test_a_value_travels_and_stays_as_it_is(value: Any) -> None:
    """Options reach the workers as they were made on the driver."""
    assert pickle.loads(pickle.dumps(value)) == value
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 1)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (Retention, ValueError, "No rule is given"),
        (lambda: Retention(keep_last=0), ValueError, "keep_last=0 keeps nothing"),
        (lambda: Retention(keep_every="a"), TypeError, "keep_every='a' is a str"),  # type: ignore[arg-type]
        (lambda: Retention(keep_best=("loss", "min", -1)), ValueError, "is negative; use 1"),
        (lambda: Saving(save_every=0), ValueError, "save_every=0"),
        (lambda: Saving(blocking="yes"), TypeError, "blocking='yes' is a str; True or False"),  # type: ignore[arg-type]
        (lambda: Saving(snapshot="lazy"), ValueError, "Choose 'eager' or 'overlap'"),
        (lambda: Retries(attempts=0), ValueError, "attempts=0"),
        (lambda: Retries(deadline=-1), ValueError, "deadline=-1"),
        (lambda: Retries(deadline="1 h"), TypeError, "seconds or a timedelta"),  # type: ignore[arg-type]
    ],
)
def test_what_a_value_cannot_mean_is_refused_when_it_is_made(
    make: Any, error: type[Exception], text: str
) -> None:
    """It is an error on the driver, before any worker is started."""
    with pytest.raises(error, match=text.replace("(", r"\(")):
        make()


def test_how_many_of_the_best_is_one_unless_it_is_said() -> None:
    """Two items name the metric and the direction, a third one says how many."""
    assert Retention(keep_best=("loss", "min")).best == Best("loss", "min", 1)
    assert Retention(keep_best=("acc", "max", 3)).best == Best("acc", "max", 3)
    assert Retention(keep_last=1).best is None


def test_times_are_seconds_or_timedeltas() -> None:
    """Both say the same."""
    assert Retries(deadline=90).seconds == Retries(deadline=timedelta(seconds=90)).seconds == 90.0
