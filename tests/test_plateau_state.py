"""The plateau detector's state: kept, brought back, and continued from."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_imuckpt import PlateauDetector, StateMismatchError
from ray_imuckpt.schedules import CosineAnnealing, Exponential, Polynomial, Sequence, Step
from support.plateaus import (
    HALVING,
    LOSSES,
    SETTINGS,
    Reference,
    at_state,
    named_schedule,
    rates,
    sgd,
)

# ---------------------------------------------------------------------------------- state


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


ONE: Any = np.float32(1.0)
THREE: Any = np.int64(3)
HALF: Any = torch.tensor(0.5)
SCHEDULES = [
    HALVING,
    CosineAnnealing(ONE, 0.0, THREE, restart=False),
    Step(1, HALF, [1, 2]),
    Polynomial(1.0, 2, 99),
    Sequence([1, HALVING, Sequence([named_schedule], [3])], [1, 2, 3]),
    named_schedule,
    lambda state: 1.0 / state,
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_state_is_plain_json_and_comes_back(
    schedule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """For every schedule, fresh and used, without a warning."""
    fresh = PlateauDetector(schedule, patience=2)
    used = at_state(4, schedule)
    used.step(torch.tensor(0.1))
    used.step(cast("float", np.float32(0.7)))
    for detector in (fresh, used):
        state = detector.state_dict()
        assert is_plain(state)
        text = json.dumps(state, allow_nan=False)
        other = PlateauDetector(schedule, patience=2)
        other.load_state_dict(json.loads(text))
        assert other.state_dict() == state
        assert other.learning_rate == detector.learning_rate
    assert not caplog.records, "the same schedule: nothing to warn of"


def test_the_state_describes_the_schedule() -> None:
    """With all its numbers, nested ones too."""
    assert PlateauDetector(Exponential(1e-3, 0.7)).state_dict() == {
        "state": 1,
        "tick": 0,
        "counted_from": 0,
        "best_loss": None,
        "schedule": {"kind": "exponential", "start": 1e-3, "decay": 0.7},
    }
    nested = Sequence([0.5, CosineAnnealing(1.0, 0.0, 3), Step(1.0, 0.5, [1, 2])], [1, 2, 3])
    assert PlateauDetector(nested).state_dict()["schedule"] == {
        "kind": "sequence",
        "schedules": [
            0.5,
            {"kind": "cosine_annealing", "start": 1.0, "end": 0.0, "period": 3, "restart": True},
            {"kind": "step", "start": 1.0, "factor": 0.5, "step_sizes": [1, 2]},
        ],
        "lengths": [1, 2, 3],
    }
    assert PlateauDetector(named_schedule).state_dict()["schedule"] == {
        "kind": "callable",
        "name": "named_schedule",
    }


@SETTINGS
@given(
    st.integers(1, 3),
    st.lists(
        st.one_of(
            LOSSES.map(lambda loss: ("step", loss)),
            st.just(("adjust", None)),
            st.integers(1, 30).map(lambda state: ("adjust", state)),
            st.just(("resume", None)),
        ),
        max_size=40,
    ),
)
def test_interrupted_anywhere_it_goes_on_as_if_it_had_not_been(
    patience: int, events: list[tuple[str, Any]]
) -> None:
    """A run that is resumed at every "resume", beside a plain model that never stops."""
    schedule = Sequence([Exponential(1.0, 0.9), Step(0.2, 0.5, [2, 3])], [5, 5])
    detector, optimizer = PlateauDetector(schedule, patience), sgd(1.0, 1.0)
    reference, state = Reference(patience), 1
    for event, value in events:
        if event == "step":
            assert detector.step(value) == reference.step(value)
        elif event == "adjust":
            detector.adjust(optimizer, value)
            state = state + 1 if value is None else value
            assert rates(optimizer) == [max(schedule(state), 1e-8)] * 2
        else:
            saved = json.dumps(detector.state_dict()), optimizer.state_dict()
            detector, optimizer = PlateauDetector(schedule, patience), sgd(1.0, 1.0)
            detector.load_state_dict(json.loads(saved[0]))
            optimizer.load_state_dict(saved[1])
        assert detector.state == state
        assert detector.learning_rate == max(schedule(state), 1e-8)


def test_loading_keeps_the_choices_of_this_object() -> None:
    """The program's are patience and min_lr; state and counts are the run's."""
    saved = at_state(3).state_dict()
    detector = PlateauDetector(HALVING, patience=7, min_lr=0.4)
    detector.load_state_dict(saved)
    assert (detector.patience, detector.min_lr, detector.state) == (7, 0.4, 3)
    assert detector.learning_rate == 0.4


@pytest.mark.parametrize(
    ("saved", "here", "warns"),
    [
        (HALVING, Exponential(1, 0.5), False),
        (HALVING, Exponential(1.0, 0.25), True),
        (HALVING, Step(1.0, 0.5, 1), True),
        (HALVING, named_schedule, True),
        (named_schedule, HALVING, True),
        (named_schedule, named_schedule, False),
        (named_schedule, lambda state: 1.0 / state, True),
        (Sequence([HALVING, 1], [1, 2]), Sequence([HALVING, 1.0], (1, 2)), False),
        (Sequence([HALVING, 1], [1, 2]), Sequence([HALVING, 2], [1, 2]), True),
    ],
)
def test_another_schedule_than_the_saved_one_is_kept_with_a_warning(
    saved: Any, here: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The program's wins, at the state that was saved."""
    detector = PlateauDetector(here)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        detector.load_state_dict(at_state(3, saved).state_dict())
    assert bool(caplog.records) == warns
    assert detector.schedule is here
    assert (detector.state, detector.learning_rate) == (3, here(3))


GOOD = {"state": 2, "tick": 5, "counted_from": 3, "best_loss": 0.5, "schedule": {}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": 0},
        {"state": 1.0},
        {"state": None},
        {"state": True},
        {"tick": -1},
        {"tick": "5"},
        {"counted_from": 6},
        {"counted_from": -1},
        {"best_loss": math.nan},
        {"best_loss": "0.5"},
        {"patience": 10},
    ],
)
def test_what_is_not_its_state_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    """A wrong value or a missing key is named."""
    detector = at_state(3)
    before = detector.state_dict()
    with pytest.raises(StateMismatchError, match=next(iter(wrong))):
        detector.load_state_dict({**GOOD, **wrong})
    for key in GOOD:
        with pytest.raises(StateMismatchError, match=key):
            detector.load_state_dict({k: v for k, v in GOOD.items() if k != key})
    assert detector.state_dict() == before


def test_minus_infinity_is_a_loss_that_nothing_beats() -> None:
    """It survives JSON, which has no infinity."""
    detector = PlateauDetector(HALVING, patience=1)
    detector.step(-math.inf)
    other = PlateauDetector(HALVING, patience=1)
    other.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert detector.step(-1e308)
    assert other.step(-1e308)


def test_it_can_be_pickled_and_copied() -> None:
    """With its state, and a repr that tells it."""
    detector = at_state(3)
    detector.step(1.0)
    for other in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        assert other.state_dict() == detector.state_dict()
        assert repr(other) == repr(detector)
    assert "Exponential(start=1.0, decay=0.5), patience=2" in repr(detector)
    assert "state 3" in repr(detector)
