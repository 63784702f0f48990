"""Ready schedules: from a state, an int counted from 1, to a learning rate. Touches nothing.

Frozen values without memory. They are those of ParameterSchedulers.jl 0.4 and follow its formulas
(https://github.com/FluxML/ParameterSchedulers.jl, src/decay.jl, cyclic.jl, complex.jl), in which
``t`` is the state. Rates have no unit of their own: they are what the optimizer calls ``lr``.
"""

from __future__ import annotations

import collections.abc
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ray_imuckpt.schedules import checks

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Exponential:
    """``start * decay**(t - 1)``; in Julia ``Exp``.

    Args:
        start: The rate at state 1, positive.
        decay: The factor from each state to the next, positive.

    Raises:
        ValueError, TypeError: An argument is not such a number, or a state not an int from 1.
    """

    start: float
    decay: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        _settle(self, start=checks.positive, decay=checks.positive)

    def __call__(self, state: int) -> float:
        """Return the rate at `state`."""
        return self.start * self.decay ** (checks.count(state, "state") - 1)


@dataclass(frozen=True)
class CosineAnnealing:
    """``(start - end) * (1 + cos(pi * u / period)) / 2 + end``; in Julia ``CosAnneal``.

    ``u = (t - 1) % period``, or ``u = t - 1`` without restarts: Loshchilov and Hutter, SGDR,
    https://arxiv.org/abs/1608.03983, equation 5. So with restarts `end` is approached but not
    reached; without them it is reached at state ``period + 1``, and then the rate rises again.

    Args:
        start: The rate at state 1, positive.
        end: The lowest rate, from 0 to `start`. (Julia's takes its two rates in any order and
            begins at the greater; here the wrong order is an error.)
        period: How many states `end` is from `start`.
        restart: Whether the rate jumps back to `start` when a period is over.

    Raises:
        ValueError, TypeError: An argument is not as said, or a state not an int from 1.
    """

    start: float
    end: float
    period: int
    restart: bool = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        _settle(self, start=checks.positive, end=checks.not_negative, period=checks.count)
        if self.start < self.end:
            raise ValueError(f"start={self.start} is below end={self.end}; the rate goes down.")
        if not isinstance(self.restart, bool):
            raise TypeError(f"restart is {self.restart!r}; True or False is wanted.")

    def __call__(self, state: int) -> float:
        """Return the rate at `state`."""
        since = checks.count(state, "state") - 1
        if self.restart:
            since %= self.period
        wave = 1 + math.cos(math.pi * since / self.period)
        return (self.start - self.end) * wave / 2 + self.end


@dataclass(frozen=True)
class Step:
    """``start * factor**k`` where ``k`` steps are over before ``t``; in Julia ``Step``.

    With a list of sizes, ``k`` is how many of their running sums ``t`` has passed; with one size
    for all, ``k = (t - 1) // step_sizes``.

    Args:
        start: The rate of the first step, positive.
        factor: From each step to the next, positive (``decay`` in Julia).
        step_sizes: How many states a step lasts, as one int or a list. Past a list the rate stays.

    Raises:
        ValueError, TypeError: An argument is not as said, or a state not an int from 1.
    """

    start: float
    factor: float
    step_sizes: int | collections.abc.Sequence[int]

    def __post_init__(self) -> None:
        """Check the arguments; a list becomes a tuple."""
        _settle(self, start=checks.positive, factor=checks.positive, step_sizes=checks.counts)

    def __call__(self, state: int) -> float:
        """Return the rate at `state`."""
        state = checks.count(state, "state")
        if isinstance(self.step_sizes, int):
            over = (state - 1) // self.step_sizes
        else:
            over = sum(state > end for end in itertools.accumulate(self.step_sizes))
        return self.start * self.factor**over


@dataclass(frozen=True)
class Polynomial:
    """``start * (1 - (t - 1) / max_state)**degree``; in Julia ``Poly``.

    (So its code has it; its docstring divides.) Past `max_state` there is no rate, as in Julia. To
    say what comes then: ``Sequence([Polynomial(1e-2, 2, 50), 1e-5], [50, 1])``.

    Args:
        start: The rate at state 1, positive.
        degree: 0 or more; 1 is a straight line.
        max_state: The last state (``max_iter`` in Julia).

    Raises:
        ValueError, TypeError: An argument is not as said, or a state not an int from 1.
        IndexError: A state past `max_state`.
    """

    start: float
    degree: float
    max_state: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        _settle(self, start=checks.positive, degree=checks.not_negative, max_state=checks.count)

    def __call__(self, state: int) -> float:
        """Return the rate at `state`."""
        state = checks.count(state, "state")
        if state > self.max_state:
            raise IndexError(
                f"{self} has no state {state}. Put it into a Sequence to say what follows it."
            )
        return self.start * math.pow(1 - (state - 1) / self.max_state, self.degree)


@dataclass(frozen=True)
class Sequence:
    """``schedule(t - before)``: schedules one after another, each from its state 1; so in Julia.

    ``before`` is the sum of the lengths of the schedules that are over. The last schedule goes on
    past its length.

    Args:
        schedules: Schedules, or numbers for constant rates.
        lengths: For how many states each is used; as many as there are schedules.

    Raises:
        ValueError, TypeError: An argument is not as said, or a state not an int from 1.
    """

    schedules: collections.abc.Sequence[Schedule | float]
    lengths: collections.abc.Sequence[int]

    def __post_init__(self) -> None:
        """Check the arguments; lists become tuples."""
        _settle(
            self,
            schedules=lambda values, _: tuple(
                item if callable(item) else checks.not_negative(item, f"schedules[{position}]")
                for position, item in enumerate(values)
            ),
            lengths=lambda values, name: checks.counts(tuple(values), name),
        )
        if len(self.schedules) != len(self.lengths):
            raise ValueError(f"{len(self.schedules)} schedules, but {len(self.lengths)} lengths.")

    def __call__(self, state: int) -> float:
        """Return the rate at `state`."""
        state = checks.count(state, "state")
        now = self.schedules[-1]
        for schedule, length in zip(self.schedules[:-1], self.lengths[:-1], strict=True):
            if state <= length:
                now = schedule
                break
            state -= length
        return checks.number(now(state), "the rate") if callable(now) else now


_KINDS: dict[type, str] = {
    Exponential: "exponential",
    CosineAnnealing: "cosine_annealing",
    Step: "step",
    Polynomial: "polynomial",
    Sequence: "sequence",
}


def describe(value: Any) -> Any:
    """Return a schedule, or a field of one, in JSON's types, to be read and compared.

    Of a callable that is none of ours that is the name only: it can be neither stored nor compared.
    """
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    if type(value) in _KINDS:
        fields = {name: describe(field) for name, field in vars(value).items()}
        return {"kind": _KINDS[type(value)], **fields}
    if callable(value):
        named = inspect.isroutine(value) or inspect.isclass(value)
        return {"kind": "callable", "name": (value if named else type(value)).__qualname__}
    return value


def _settle(schedule: Any, **check: Callable[[Any, str], Any]) -> None:
    """Put into each field what its check makes of it; a frozen dataclass allows it only so."""
    for name, checked in check.items():
        object.__setattr__(schedule, name, checked(vars(schedule)[name], name))
