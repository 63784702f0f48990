"""The ready schedules; where numbers stand, they were worked out by hand."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from ray_imuckpt.schedules import CosineAnnealing, Exponential, Polynomial, Sequence, Step
from support.plateaus import HALVING, named_schedule


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
    """Those of ParameterSchedulers.jl, state by state."""
    assert [schedule(t) for t in range(1, len(values) + 1)] == pytest.approx(values, abs=1e-15)


def test_schedules_begin_at_exactly_their_start() -> None:
    """To the last bit, whatever the formula."""
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
    """The error names what to follow it with."""
    with pytest.raises(IndexError, match=r"no state 6.*Sequence"):
        Polynomial(1.0, 2, 5)(6)


def test_schedules_are_values() -> None:
    """Equal when their numbers are, of whatever type; hashable, frozen, pickled."""
    half: Any = torch.tensor(0.5)
    assert Step(1, 0.5, [2, 3]) == Step(np.float64(1.0), half, (2, 3))
    assert hash(Sequence([1, HALVING], [2, 3])) == hash(Sequence((1.0, HALVING), (2, 3)))
    assert Exponential(1.0, 0.5) != Exponential(1.0, 0.25)
    assert pickle.loads(pickle.dumps(Sequence([HALVING], [1]))) == Sequence([HALVING], [1])
    with pytest.raises(AttributeError):
        setattr(HALVING, "start", 2.0)  # noqa: B010 - a type checker refuses it too


NOT_NUMBERS = [("1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError)]
NEGATIVE = [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), *NOT_NUMBERS]
NOT_POSITIVE = [(0, ValueError), *NEGATIVE]
NOT_COUNTS = [(0, ValueError), (-1, ValueError), (1.0, TypeError), *NOT_NUMBERS]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda x: Exponential(x, 0.5), NOT_POSITIVE),
        (lambda x: Exponential(1.0, x), NOT_POSITIVE),
        (lambda x: Exponential(cast("float", torch.ones(2)), x), [(0.5, TypeError)]),
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
    """Zero, negative, not finite, of another type: each where it is given."""
    for value, error in wrong:
        with pytest.raises(error):
            make(value)
