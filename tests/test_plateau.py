"""The plateau detector and its schedules; where numbers stand, they were worked out by hand."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    CosineAnnealing,
    Exponential,
    PlateauDetector,
    Polynomial,
    Sequence,
    StateMismatchError,
    Step,
)

HALVING = Exponential(1.0, 0.5)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=300)


def sgd(*rates: Any) -> torch.optim.Optimizer:
    """An optimizer with one parameter group for each rate."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.123)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def at_state(state: int, schedule: Any = HALVING) -> PlateauDetector:
    detector = PlateauDetector(schedule, patience=2)
    detector.adjust(sgd(1.0), state)
    return detector


def named_schedule(state: int) -> float:
    return 1.0 / state


# ---------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Exponential(1.0, 0.5), [1, 0.5, 0.25, 0.125]),
        (Exponential(1e-3, 1.0), [1e-3, 1e-3]),
        # cos(0), cos(pi/3), cos(2pi/3) = 1, 1/2, -1/2
        (CosineAnnealing(1.0, 0.0, 3), [1, 0.75, 0.25, 1, 0.75, 0.25, 1]),
        (CosineAnnealing(1.0, 0.0, 3, restart=False), [1, 0.75, 0.25, 0, 0.25, 0.75, 1, 0.75]),
        (CosineAnnealing(5.0, 1.0, 2), [5, 3, 5, 3]),
        (CosineAnnealing(2.0, 2.0, 7), [2, 2, 2]),
        (CosineAnnealing(2.0, 1.0, 1), [2, 2, 2]),
        (Step(8.0, 0.5, 2), [8, 8, 4, 4, 2, 2, 1, 1]),
        (Step(8.0, 0.5, [2, 3]), [8, 8, 4, 4, 4, 2, 2, 2, 2]),
        (Step(8.0, 0.5, (1,)), [8, 4, 4]),
        (Polynomial(16.0, 2, 4), [16, 9, 4, 1]),
        (Polynomial(4.0, 1, 4), [4, 3, 2, 1]),
        (Polynomial(4.0, 0, 3), [4, 4, 4]),
        (Polynomial(1.0, 0.5, 4), [1, math.sqrt(3) / 2, math.sqrt(2) / 2, 0.5]),
        (Sequence([3, Exponential(1.0, 0.5)], [2, 9]), [3, 3, 1, 0.5, 0.25]),
        # the last one goes on past its length, from where it was
        (Sequence([HALVING, Step(8.0, 0.5, 2)], [1, 1]), [1, 8, 8, 4, 4, 2]),
        (Sequence([7], [1]), [7, 7, 7]),
        (Sequence([1, 2, 3], [1, 2, 1]), [1, 2, 2, 3, 3]),
        (Sequence([Sequence([9, HALVING], [1, 5]), 4], [3, 1]), [9, 1, 0.5, 4, 4]),
        (Sequence([Polynomial(2.0, 1, 2), 0.25], [2, 1]), [2, 1, 0.25, 0.25]),
        (Sequence([named_schedule, lambda state: 10 * state], [2, 2]), [1, 0.5, 10, 20, 30]),
    ],
)
def test_schedules_give_the_values_of_parameter_schedulers(
    schedule: Any, values: list[float]
) -> None:
    assert [schedule(t) for t in range(1, len(values) + 1)] == pytest.approx(values, abs=1e-15)


def test_schedules_begin_at_exactly_their_start() -> None:
    for schedule in (
        Exponential(1e-3, 0.7),
        CosineAnnealing(1e-3, 0.0, 10),
        Step(1e-3, 0.1, 5),
        Polynomial(1e-3, 3, 5),
        Sequence([1e-3, HALVING], [2, 2]),
    ):
        assert schedule(1) == 1e-3


@pytest.mark.parametrize(
    "schedule",
    [
        HALVING,
        CosineAnnealing(1.0, 0.0, 3),
        Step(1.0, 0.5, 2),
        Polynomial(1.0, 1, 5),
        Sequence([1], [1]),
    ],
)
def test_states_count_from_one(schedule: Any) -> None:
    """An epoch that counts from 0, or a float, is a slip; it would give a rate above the start."""
    for state in (0, -1):
        with pytest.raises(ValueError, match="state"):
            schedule(state)
    for wrong in (1.0, "1", None, True):
        with pytest.raises(TypeError, match="state"):
            schedule(wrong)
    assert schedule(np.int64(2)) == schedule(2)


def test_a_polynomial_has_no_rate_past_its_last_state() -> None:
    with pytest.raises(IndexError, match=r"no state 6.*Sequence"):
        Polynomial(1.0, 2, 5)(6)


def test_schedules_are_values() -> None:
    assert Step(1, 0.5, [2, 3]) == Step(np.float64(1.0), torch.tensor(0.5), (2, 3))
    assert hash(Sequence([1, HALVING], [2, 3])) == hash(Sequence((1.0, HALVING), (2, 3)))
    assert Exponential(1.0, 0.5) != Exponential(1.0, 0.25)
    assert pickle.loads(pickle.dumps(Sequence([HALVING], [1]))) == Sequence([HALVING], [1])
    with pytest.raises(AttributeError):
        HALVING.start = 2.0


NOT_NUMBERS = [("1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError)]
NEGATIVE = [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), *NOT_NUMBERS]
NOT_POSITIVE = [(0, ValueError), *NEGATIVE]
NOT_COUNTS = [(0, ValueError), (-1, ValueError), (1.0, TypeError), *NOT_NUMBERS]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda x: Exponential(x, 0.5), NOT_POSITIVE),
        (lambda x: Exponential(1.0, x), NOT_POSITIVE),
        (lambda x: Exponential(torch.ones(2), x), [(0.5, TypeError)]),
        (lambda x: CosineAnnealing(x, 0.0, 5), NOT_POSITIVE),
        (lambda x: CosineAnnealing(1.0, x, 5), NEGATIVE),
        (lambda x: CosineAnnealing(1.0, x, 5), [(1.1, ValueError)]),
        (lambda x: CosineAnnealing(1.0, 0.1, x), NOT_COUNTS),
        (lambda x: CosineAnnealing(1.0, 0.1, 5, x), [(1, TypeError), (None, TypeError)]),
        (lambda x: Step(x, 0.5, 2), NOT_POSITIVE),
        (lambda x: Step(1.0, x, 2), NOT_POSITIVE),
        (lambda x: Step(1.0, 0.5, x), NOT_COUNTS),
        (lambda x: Step(1.0, 0.5, [1, x]), NOT_COUNTS),
        (lambda x: Step(1.0, 0.5, x), [([], ValueError), ("12", TypeError)]),
        (lambda x: Polynomial(x, 2, 5), NOT_POSITIVE),
        (lambda x: Polynomial(1.0, x, 5), NEGATIVE),
        (lambda x: Polynomial(1.0, 2, x), NOT_COUNTS),
        (lambda x: Sequence([x], [1]), NEGATIVE),
        (lambda x: Sequence([1.0], [x]), NOT_COUNTS),
        (lambda x: Sequence([1.0, 2.0], x), [([1], ValueError), ([1, 2, 3], ValueError)]),
        (lambda x: Sequence(x, x), [([], ValueError), (HALVING, TypeError), (1, TypeError)]),
    ],
)
def test_wrong_arguments_of_schedules_are_errors(
    make: Callable[[Any], Any], wrong: list[tuple[Any, type[Exception]]]
) -> None:
    for value, error in wrong:
        with pytest.raises(error):
            make(value)


# ---------------------------------------------------------------------------------- step


def test_a_plateau_is_patience_ticks_without_a_better_loss() -> None:
    detector = PlateauDetector(HALVING, patience=3)
    #         best  1      2      plateau            best   1      2      plateau
    losses = [5.0, 5.0, 6.0, 5.0, 7.0, 7.0, 4.0, 4.0, 9.0, 4.0]
    told = [detector.step(loss) for loss in losses]
    assert told == [False, False, False, True, False, False, False, False, False, True]


def test_after_a_plateau_the_count_begins_anew_but_the_best_loss_stays() -> None:
    detector = PlateauDetector(HALVING, patience=2)
    # 3.0 is the best throughout: 3.5 after the plateau is no improvement
    assert [detector.step(x) for x in (3.0, 4.0, 4.0, 3.5, 3.5, 3.5, 3.5)] == [
        False, False, True, False, True, False, True,
    ]  # fmt: skip


def test_an_equal_loss_is_not_better() -> None:
    detector = PlateauDetector(HALVING, patience=1)
    assert [detector.step(1.0) for _ in range(3)] == [False, True, True]


def test_without_any_finite_loss_the_plateau_counts_from_the_start() -> None:
    for useless in (math.nan, math.inf):
        detector = PlateauDetector(HALVING, patience=3)
        assert [detector.step(useless) for _ in range(6)] == [
            False,
            False,
            True,
            False,
            False,
            True,
        ]


def test_nan_is_not_better_and_does_not_spoil_the_best() -> None:
    detector = PlateauDetector(HALVING, patience=2)
    assert [detector.step(x) for x in (2.0, math.nan, 1.0, math.nan, math.nan, 0.5)] == [
        False, False, False, False, True, False,
    ]  # fmt: skip


def test_a_loss_that_only_rises_lowers_the_rate_every_patience_ticks() -> None:
    """Of 100 rising losses the first is the best; patience 10 puts plateaus at 11, 21, … 91."""
    detector = PlateauDetector(Exponential(1e-3, 0.1), patience=10, min_lr=1e-8)
    optimizer = sgd(1e-3)
    plateaus = []
    for tick in range(1, 101):
        if detector.step(tick * 0.01):
            plateaus.append(tick)
            detector.adjust(optimizer)
    assert plateaus == list(range(11, 101, 10))
    assert detector.state == 10
    assert detector.learning_rate == rates(optimizer)[0] == 1e-8, "1e-12, had it not been clipped"


@pytest.mark.parametrize(
    "one",
    [1, 1.0, np.float32(1), np.float16(1), np.int64(1), np.array(1.0), np.array([[1.0]]),
     torch.tensor(1.0), torch.tensor([1.0]), torch.tensor(1), torch.tensor(1.0, requires_grad=True),
     torch.ones(1, 1, dtype=torch.bfloat16), Fraction(1)],
)  # fmt: skip
def test_a_loss_may_be_any_single_number(one: Any) -> None:
    detector = PlateauDetector(HALVING, patience=1)
    assert not detector.step(one)
    assert detector.step(1.0), "it was read as 1.0, so that 1.0 is no better"
    assert not detector.step(0.999)


@pytest.mark.parametrize(
    "wrong",
    [None, "1.0", True, np.True_, torch.tensor(True), 1j, torch.tensor(1j), [1.0], {}, object(),
     torch.ones(2), np.ones(2), torch.empty(0), np.array("1")],
)  # fmt: skip
def test_what_is_no_number_is_a_type_error_and_no_tick(wrong: Any) -> None:
    detector = PlateauDetector(HALVING, patience=2)
    detector.step(1.0)
    before = detector.state_dict()
    with pytest.raises(TypeError, match="loss is a"):
        detector.step(wrong)
    assert detector.state_dict() == before


class Reference:
    """Plain Python: looks at the whole history of losses at every tick."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.marks = [0]  # ticks at which the count began anew

    def step(self, loss: float) -> bool:
        best = min((x for x in self.losses if not math.isnan(x)), default=math.inf)
        self.losses.append(loss)
        tick = len(self.losses)
        better = not math.isnan(loss) and loss < best
        plateau = not better and tick - max(self.marks) >= self.patience
        if better or plateau:
            self.marks.append(tick)
        return plateau


LOSSES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, math.nan, math.inf]),  # ties are common
)


@SETTINGS
@given(st.integers(1, 5), st.lists(LOSSES, max_size=40))
def test_step_agrees_with_the_definition(patience: int, losses: list[float]) -> None:
    detector, reference = PlateauDetector(HALVING, patience), Reference(patience)
    for loss in losses:
        assert detector.step(loss) == reference.step(loss)


# ---------------------------------------------------------------------------------- adjust


def test_adjust_moves_on_by_one_state_and_sets_every_group() -> None:
    detector = PlateauDetector(HALVING)
    optimizer = sgd(3.0, 7.0)
    assert (detector.state, detector.learning_rate) == (1, 1.0)
    assert rates(optimizer) == [3.0, 7.0], "a new detector changes nothing yet"
    detector.adjust(optimizer)
    assert (detector.state, detector.learning_rate) == (2, 0.5)
    assert rates(optimizer) == [0.5, 0.5]
    detector.adjust(optimizer)
    assert rates(optimizer) == [0.25, 0.25]


def test_adjust_to_a_state() -> None:
    detector, optimizer = at_state(3), sgd(9.0, 9.0)
    detector.adjust(optimizer, detector.state)
    assert rates(optimizer) == [0.25, 0.25], "for an optimizer whose own rate was not restored"
    detector.adjust(optimizer, 1)
    assert rates(optimizer) == [1.0, 1.0]
    detector.adjust(optimizer, np.int64(4))
    assert rates(optimizer) == [0.125, 0.125]
    detector.adjust(optimizer)
    assert (detector.state, rates(optimizer)) == (5, [0.0625, 0.0625])


def test_adjust_to_another_schedule_begins_it_at_its_first_state() -> None:
    detector, optimizer = at_state(3), sgd(9.0)
    detector.adjust(optimizer, Step(8.0, 0.5, 1))
    assert (detector.state, rates(optimizer)) == (1, [8.0])
    assert detector.schedule == Step(8.0, 0.5, 1)
    detector.adjust(optimizer)
    assert rates(optimizer) == [4.0]
    detector.adjust(optimizer, lambda state: 100 + state)
    assert rates(optimizer) == [101.0]


def test_adjust_leaves_the_count_of_ticks_and_the_best_loss() -> None:
    detector = PlateauDetector(HALVING, patience=3)
    for loss in (1.0, 2.0):
        detector.step(loss)
    for to in (None, 5, Exponential(1.0, 0.1)):
        detector.adjust(sgd(1.0), to)
    assert [detector.step(2.0), detector.step(2.0)] == [False, True]


def test_a_tensor_rate_is_filled_in_place() -> None:
    """A compiled or captured optimizer reads the tensor that it was given."""
    shared = torch.tensor(9.0)
    own = torch.tensor(9.0, dtype=torch.float64)
    optimizer = sgd(shared, shared, own, 9.0)
    at_state(1).adjust(optimizer, 3)
    assert [group["lr"] for group in optimizer.param_groups[:3]] == [shared, shared, own]
    assert optimizer.param_groups[0]["lr"] is shared
    assert optimizer.param_groups[2]["lr"] is own
    assert shared.item() == own.item() == 0.25
    assert optimizer.param_groups[3]["lr"] == 0.25
    assert isinstance(optimizer.param_groups[3]["lr"], float)


def test_the_rate_that_is_set_is_the_one_that_is_used() -> None:
    weight = torch.zeros(1, requires_grad=True)
    for rate in (1.0, torch.tensor(1.0)):
        optimizer = torch.optim.SGD([weight], lr=rate)
        at_state(1).adjust(optimizer, 2)
        with torch.no_grad():
            weight.zero_()
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == -0.5


def test_the_rate_never_falls_below_min_lr() -> None:
    optimizer = sgd(1.0)
    detector = PlateauDetector(HALVING, min_lr=0.3)
    seen = []
    for _ in range(3):
        detector.adjust(optimizer)
        seen.append(rates(optimizer)[0])
    assert seen == [0.5, 0.3, 0.3]
    assert PlateauDetector(lambda _: -1.0).learning_rate == 1e-8
    assert PlateauDetector(lambda _: -1.0, min_lr=0).learning_rate == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        PlateauDetector(HALVING, min_lr=-1e-9)


@pytest.mark.parametrize(
    ("to", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        (True, TypeError),
        ("2", TypeError),
        (lambda _: math.nan, ValueError),
        (lambda _: math.inf, ValueError),
        (lambda _: -math.inf, ValueError),
        (lambda _: None, TypeError),
        (lambda _: "0.1", TypeError),
        (lambda _: torch.ones(2), TypeError),
        (lambda _: 1 / 0, ZeroDivisionError),
    ],
)
def test_when_adjust_raises_nothing_has_changed(to: Any, error: type[Exception]) -> None:
    detector, optimizer = at_state(3), sgd(7.0, 8.0)
    before = detector.state_dict()
    with pytest.raises(error):
        detector.adjust(optimizer, to)
    assert detector.state_dict() == before
    assert detector.schedule is HALVING
    assert rates(optimizer) == [7.0, 8.0]


def test_past_the_end_of_a_polynomial_nothing_has_changed() -> None:
    detector, optimizer = at_state(2, Polynomial(1.0, 1, 2)), sgd(7.0)
    with pytest.raises(IndexError):
        detector.adjust(optimizer)
    assert (detector.state, rates(optimizer)) == (2, [7.0])


def test_adjust_needs_an_optimizer_with_rates() -> None:
    detector = at_state(3)
    with pytest.raises(TypeError, match="Linear"):
        detector.adjust(torch.nn.Linear(1, 1))
    optimizer = sgd(7.0, 8.0)
    del optimizer.param_groups[1]["lr"]
    with pytest.raises(ValueError, match="no 'lr'"):
        detector.adjust(optimizer)
    assert optimizer.param_groups[0]["lr"] == 7.0
    assert detector.state == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule": 1e-3}, TypeError),
        ({"schedule": None}, TypeError),
        ({"schedule": lambda _: math.nan}, ValueError),
        ({"schedule": lambda _: "fast"}, TypeError),
        ({"patience": 0}, ValueError),
        ({"patience": -1}, ValueError),
        ({"patience": 1.0}, TypeError),
        ({"patience": True}, TypeError),
        ({"patience": None}, TypeError),
        ({"min_lr": -1.0}, ValueError),
        ({"min_lr": math.nan}, ValueError),
        ({"min_lr": math.inf}, ValueError),
        ({"min_lr": "0"}, TypeError),
    ],
)
def test_wrong_arguments_are_errors_at_construction(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        PlateauDetector(**{"schedule": HALVING, **arguments})


@pytest.mark.parametrize("rate", [1, 0.5, np.float32(0.5), torch.tensor(0.5), np.array([0.5])])
def test_a_schedule_may_give_any_single_number(rate: Any) -> None:
    detector, optimizer = PlateauDetector(lambda _: rate), sgd(9.0)
    detector.adjust(optimizer)
    assert rates(optimizer) == [1.0 if rate == 1 else 0.5]
    assert type(optimizer.param_groups[0]["lr"]) is float


# ---------------------------------------------------------------------------------- state


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


SCHEDULES = [
    HALVING,
    CosineAnnealing(np.float32(1.0), 0.0, np.int64(3), restart=False),
    Step(1, torch.tensor(0.5), [1, 2]),
    Polynomial(1.0, 2, 99),
    Sequence([1, HALVING, Sequence([named_schedule], [3])], [1, 2, 3]),
    named_schedule,
    lambda state: 1.0 / state,
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_state_is_plain_json_and_comes_back(
    schedule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = PlateauDetector(schedule, patience=2)
    used = at_state(4, schedule)
    used.step(torch.tensor(0.1))
    used.step(np.float32(0.7))
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
    detector = at_state(3)
    before = detector.state_dict()
    with pytest.raises(StateMismatchError, match=next(iter(wrong))):
        detector.load_state_dict({**GOOD, **wrong})
    for key in GOOD:
        with pytest.raises(StateMismatchError, match=key):
            detector.load_state_dict({k: v for k, v in GOOD.items() if k != key})
    assert detector.state_dict() == before


def test_minus_infinity_is_a_loss_that_nothing_beats() -> None:
    detector = PlateauDetector(HALVING, patience=1)
    detector.step(-math.inf)
    other = PlateauDetector(HALVING, patience=1)
    other.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert detector.step(-1e308)
    assert other.step(-1e308)


def test_it_can_be_pickled_and_copied() -> None:
    detector = at_state(3)
    detector.step(1.0)
    for other in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        assert other.state_dict() == detector.state_dict()
        assert repr(other) == repr(detector)
    assert "Exponential(start=1.0, decay=0.5), patience=2" in repr(detector)
    assert "state 3" in repr(detector)


# ---------------------------------------------------------------------------------- resuming a run

LOSS_CURVE = [5.0, 4.0, 4.1, 4.2, 3.0, 3.0, 3.0, 3.0, math.nan, 3.5, 2.0, 2.5, 2.5, 2.5, 2.5]


def run(
    directory: Path,
    last: int,
    schedule: Any,
    change_at: int | None = None,
    tensor_rate: bool = False,
) -> tuple[list[float], torch.nn.Module, torch.optim.Optimizer]:
    """Train to epoch `last`; returns the rates of the epochs so far, as the log holds them.

    Args:
        directory: Of the checkpoints.
        last: The last epoch.
        schedule: Of the detector that this run builds.
        change_at: Before which epoch this run begins the schedule anew.
        tensor_rate: Whether the optimizer's rate is a tensor.
    """
    model = small_model().eval()
    rate: Any = torch.tensor(schedule(1), dtype=torch.float64) if tensor_rate else schedule(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    plateau = PlateauDetector(schedule, patience=2)
    checkpointer = Checkpointer(directory)
    started = checkpointer.start(model, optimizer, plateau=plateau)
    log = started.log
    for epoch in range(started.start_epoch, last + 1):
        if epoch == change_at:
            plateau.adjust(optimizer, schedule)
        log.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        if plateau.step(LOSS_CURVE[epoch - 1]):
            plateau.adjust(optimizer)
        checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log, plateau=plateau)
    return log, model, optimizer


@pytest.mark.parametrize("tensor_rate", [False, True])
def test_resumed_with_the_same_schedule_it_is_the_same_run(
    tmp_path: Path, tensor_rate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped after every epoch: the same rates, weights and optimizer as never interrupted."""
    schedule = Exponential(2.0**-7, 0.5)
    whole, model, optimizer = run(tmp_path / "whole", 15, schedule, tensor_rate=tensor_rate)
    for last in range(1, 16):
        parts, again, same = run(tmp_path / "parts", last, schedule, tensor_rate=tensor_rate)
        assert parts == whole[:last]
    assert same_bytes(dict(again.state_dict()), dict(model.state_dict()))
    assert rates(same) == rates(optimizer)
    # plateaus, worked out by hand, are at the ends of epochs 4, 7, 9, 13 and 15
    spans = [-7] * 4 + [-8] * 3 + [-9] * 2 + [-10] * 4 + [-11] * 2
    assert [math.log2(rate) for rate in whole] == spans
    assert not caplog.records


def test_resumed_with_another_schedule_adjust_changes_course(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Exponential(2.0**-7, 0.5), Exponential(2.0**-3, 0.25)
    run(tmp_path, 8, old)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        log, _, _ = run(tmp_path, 11, new, change_at=9)
    assert "saved with the schedule {'kind': 'exponential', 'start': 0.0078125" in caplog.text
    assert [math.log2(rate) for rate in log[6:]] == [-8, -9, -3, -5, -5]


def test_a_changed_course_survives_being_killed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that builds the new schedule and adjusts at a given epoch may run many times."""
    old, new = Exponential(2.0**-7, 0.5), Exponential(2.0**-3, 0.25)
    for name in ("whole", "parts"):
        run(tmp_path / name, 8, old)
    whole, _, _ = run(tmp_path / "whole", 15, new, change_at=9)
    caplog.clear()
    for last in range(9, 16):
        parts, _, _ = run(tmp_path / "parts", last, new, change_at=9)
        assert parts == whole[:last]
    assert len(caplog.records) == 1, "only where the course is changed"


def test_resumed_with_another_schedule_and_left_alone_the_rate_stays_until_adjust(
    tmp_path: Path,
) -> None:
    """`start` never changes course: it goes on at the state reached, on the new schedule."""
    run(tmp_path, 8, Exponential(2.0**-7, 0.5))
    log, _, _ = run(tmp_path, 10, Exponential(2.0**-3, 0.5))
    # epoch 9 has the restored rate; the plateau at its end moves to state 4 of the new schedule
    assert [math.log2(rate) for rate in log[7:]] == [-9, -9, -6]


def test_the_python_of_the_page_from_julia_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "from-julia.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/from-julia.md", "exec"), names)
