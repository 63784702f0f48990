"""The plateau detector: its steps, and what it does to an optimizer."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_imuckpt import PlateauDetector
from ray_imuckpt.schedules import Exponential, Polynomial, Step
from support.plateaus import HALVING, LOSSES, SETTINGS, Reference, at_state, rates, sgd

# ---------------------------------------------------------------------------------- step


def test_a_plateau_is_patience_ticks_without_a_better_loss() -> None:
    """A better loss begins the count anew."""
    detector = PlateauDetector(HALVING, patience=3)
    #         best  1      2      plateau            best   1      2      plateau
    losses = [5.0, 5.0, 6.0, 5.0, 7.0, 7.0, 4.0, 4.0, 9.0, 4.0]
    told = [detector.step(loss) for loss in losses]
    assert told == [False, False, False, True, False, False, False, False, False, True]


def test_after_a_plateau_the_count_begins_anew_but_the_best_loss_stays() -> None:
    """What was good before the plateau is still what has to be beaten."""
    detector = PlateauDetector(HALVING, patience=2)
    # 3.0 is the best throughout: 3.5 after the plateau is no improvement
    assert [detector.step(x) for x in (3.0, 4.0, 4.0, 3.5, 3.5, 3.5, 3.5)] == [
        False, False, True, False, True, False, True,
    ]  # fmt: skip


def test_an_equal_loss_is_not_better() -> None:
    """Less is better, and nothing else is."""
    detector = PlateauDetector(HALVING, patience=1)
    assert [detector.step(1.0) for _ in range(3)] == [False, True, True]


def test_without_any_finite_loss_the_plateau_counts_from_the_start() -> None:
    """A run that has diverged at once reaches its plateau too."""
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
    """It is a tick like any other."""
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
    """Of Python, NumPy and torch, on any device."""
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
    """The detector's state stays as it was."""
    detector = PlateauDetector(HALVING, patience=2)
    detector.step(1.0)
    before = detector.state_dict()
    with pytest.raises(TypeError, match="loss is a"):
        detector.step(wrong)
    assert detector.state_dict() == before


@SETTINGS
@given(st.integers(1, 5), st.lists(LOSSES, max_size=40))
def test_step_agrees_with_the_definition(patience: int, losses: list[float]) -> None:
    """For any patience and any losses, NaN and infinity among them."""
    detector, reference = PlateauDetector(HALVING, patience), Reference(patience)
    for loss in losses:
        assert detector.step(loss) == reference.step(loss)


# ---------------------------------------------------------------------------------- adjust


def test_adjust_moves_on_by_one_state_and_sets_every_group() -> None:
    """Before the first call the optimizer keeps its own rates."""
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
    """It sets the rate of that state, for the optimizer and from then on."""
    detector, optimizer = at_state(3), sgd(9.0, 9.0)
    detector.adjust(optimizer, detector.state)
    assert rates(optimizer) == [0.25, 0.25], "for an optimizer whose own rate was not restored"
    detector.adjust(optimizer, 1)
    assert rates(optimizer) == [1.0, 1.0]
    four: Any = np.int64(4)
    detector.adjust(optimizer, four)
    assert rates(optimizer) == [0.125, 0.125]
    detector.adjust(optimizer)
    assert (detector.state, rates(optimizer)) == (5, [0.0625, 0.0625])


def test_adjust_to_another_schedule_begins_it_at_its_first_state() -> None:
    """A schedule may be any function of the state."""
    detector, optimizer = at_state(3), sgd(9.0)
    detector.adjust(optimizer, Step(8.0, 0.5, 1))
    assert (detector.state, rates(optimizer)) == (1, [8.0])
    assert detector.schedule == Step(8.0, 0.5, 1)
    detector.adjust(optimizer)
    assert rates(optimizer) == [4.0]
    detector.adjust(optimizer, lambda state: 100 + state)
    assert rates(optimizer) == [101.0]


def test_adjust_leaves_the_count_of_ticks_and_the_best_loss() -> None:
    """A change of the rate does not put off the next plateau."""
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
    """By an optimizer whose rate is a number, and one whose rate is a tensor."""
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
    """Whatever the schedule gives; a negative min_lr is refused."""
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
    """Neither the detector nor any group of the optimizer."""
    detector, optimizer = at_state(3), sgd(7.0, 8.0)
    before = detector.state_dict()
    with pytest.raises(error):
        detector.adjust(optimizer, to)
    assert detector.state_dict() == before
    assert detector.schedule is HALVING
    assert rates(optimizer) == [7.0, 8.0]


def test_past_the_end_of_a_polynomial_nothing_has_changed() -> None:
    """It is an IndexError, and the last rate stays."""
    detector, optimizer = at_state(2, Polynomial(1.0, 1, 2)), sgd(7.0)
    with pytest.raises(IndexError):
        detector.adjust(optimizer)
    assert (detector.state, rates(optimizer)) == (2, [7.0])


def test_adjust_needs_an_optimizer_with_rates() -> None:
    """Anything else is refused before the first rate is set."""
    detector = at_state(3)
    with pytest.raises(TypeError, match="Linear"):
        detector.adjust(cast("torch.optim.Optimizer", torch.nn.Linear(1, 1)))
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
    """Not at the first plateau, epochs later."""
    with pytest.raises(error):
        PlateauDetector(**{"schedule": HALVING, **arguments})


@pytest.mark.parametrize("rate", [1, 0.5, np.float32(0.5), torch.tensor(0.5), np.array([0.5])])
def test_a_schedule_may_give_any_single_number(rate: Any) -> None:
    """It reaches the optimizer as a float."""
    detector, optimizer = PlateauDetector(lambda _: rate), sgd(9.0)
    detector.adjust(optimizer)
    assert rates(optimizer) == [1.0 if rate == 1 else 0.5]
    assert type(optimizer.param_groups[0]["lr"]) is float
