"""The detector: has the loss stopped getting better, and which rate comes next. Touches torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.schedules import checks
from ray_imuckpt.schedules.curves import Schedule, describe

logger = logging.getLogger("ray_imuckpt")


class PlateauDetector:
    """A detector of plateaus of a loss, which moves the learning rate along a schedule.

    Call `step` once a tick (an epoch, a batch, as you like), and `adjust` when it returns True. In
    a gang give every rank the same loss, say the mean over the ranks: a rank that sees another loss
    would come to another rate.

    Args:
        schedule: From a state, an int counted from 1, to a learning rate; always the same rate for
            the same state.
        patience: How many ticks without a better loss make a plateau, 1 or more.
        min_lr: The learning rate never falls below this; finite, 0 or more.

    Raises:
        ValueError: An argument is out of its range, or the schedule's first rate is not finite.
        TypeError: An argument is of the wrong type, or the schedule's first rate is not a number.
    """

    def __init__(self, schedule: Schedule, patience: int = 10, min_lr: float = 1e-8) -> None:
        self.patience: Final = checks.count(patience, "patience")
        self.min_lr: Final = checks.not_negative(min_lr, "min_lr")
        self._rate(schedule, 1)  # the time to hear that a schedule cannot work is before training
        self._schedule = schedule
        self._state = 1
        self._tick = 0
        self._best_loss = math.inf
        self._counted_from = 0  # the tick of the best loss or of the last plateau, the later one

    def __repr__(self) -> str:
        """Return the choices, and the state it is at."""
        return (
            f"PlateauDetector({self._schedule!r}, patience={self.patience}, min_lr={self.min_lr}) "
            f"at state {self._state}"
        )

    @property
    def schedule(self) -> Schedule:
        """Return the schedule in use, the constructor's or the last one given to `adjust`."""
        return self._schedule

    @property
    def state(self) -> int:
        """Return the state of the schedule it is at, from 1."""
        return self._state

    @property
    def learning_rate(self) -> float:
        """Return ``max(min_lr, schedule(state))``.

        Raises:
            ValueError: The schedule's rate is nan or infinite.
            TypeError: It is not a number.
        """
        return self._rate(self._schedule, self._state)

    def step(self, loss: float | torch.Tensor) -> bool:
        """Count a tick; return whether the loss is on a plateau, and it is time to `adjust`.

        A loss below the best so far becomes the best. Any other, nan too, is on a plateau when
        `patience` ticks have passed since the best one or since the last plateau.

        Args:
            loss: A number, or a tensor or array that holds one. Reading a tensor waits for its
                device.

        Raises:
            TypeError: `loss` is not a single real number. Then this was no tick.
        """
        value = checks.number(loss, "loss")
        self._tick += 1
        if value < self._best_loss:  # never true of nan
            self._best_loss = value
            self._counted_from = self._tick
            return False
        if self._tick - self._counted_from < self.patience:
            return False
        self._counted_from = self._tick
        return True

    def adjust(self, optimizer: torch.optim.Optimizer, to: int | Schedule | None = None) -> None:
        """Move along the schedule, and set the learning rate of every parameter group.

        The best loss and the count of ticks stay. A learning rate that is a tensor is filled in
        place: an optimizer that is compiled or captured in a CUDA graph reads that very tensor.
        When this raises, nothing has changed.

        Args:
            optimizer: Anything with ``param_groups``. All groups get the same learning rate.
            to: Left out: the next state. An int: that state (`state` sets the present rate again).
                A schedule: its state 1; from now on it is the one in use.

        Raises:
            ValueError: A state below 1, a rate that is not finite, or a group without ``"lr"``.
            TypeError: An argument is of the wrong type, or the rate is not a number.
            Exception: Whatever the schedule itself raises.
        """
        schedule, state = self._schedule, self._state + 1
        if callable(to):
            schedule, state = to, 1
        elif to is not None:
            state = checks.count(to, "what to adjust to (a state or a schedule)")
        rate = self._rate(schedule, state)
        groups = _groups(optimizer)
        for group in groups:
            if isinstance(group["lr"], torch.Tensor):
                with torch.no_grad():
                    group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._schedule, self._state = schedule, state

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands, in JSON's types. Of the schedule it holds a description only."""
        return {
            "state": self._state,
            "tick": self._tick,
            "counted_from": self._counted_from,
            "best_loss": None if self._best_loss == math.inf else self._best_loss,
            "schedule": describe(self._schedule),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to where it stood. The schedule, `patience` and `min_lr` are this object's own.

        When the state was saved with another schedule, a warning is logged. (Of two schedules that
        are none of ours only the names are compared.)

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            StateMismatchError: It is not that; nothing has changed.
        """
        ours = self.state_dict()
        missing = [key for key in ours if key not in state_dict]
        unexpected = [key for key in state_dict if key not in ours]
        if missing or unexpected:
            raise StateMismatchError(
                "This is not the state of a PlateauDetector.",
                missing=missing,
                unexpected=unexpected,
            )
        best = state_dict["best_loss"]
        try:
            state = checks.count(state_dict["state"], "state")
            tick = checks.count(state_dict["tick"], "tick", at_least=0)
            counted_from = checks.count(state_dict["counted_from"], "counted_from", at_least=0)
            best_loss = math.inf if best is None else checks.number(best, "best_loss")
            if counted_from > tick or math.isnan(best_loss):
                raise ValueError(f"{counted_from=}, {tick=}, {best_loss=} cannot be")
        except (TypeError, ValueError) as error:
            raise StateMismatchError(f"Not the state of a PlateauDetector: {error}") from error
        if state_dict["schedule"] != ours["schedule"]:
            logger.warning(
                "This PlateauDetector was saved with the schedule %s. It is built with %s, which "
                "it keeps, and is at state %d of it. The optimizer keeps its learning rate until "
                "adjust() is called; adjust(optimizer, 1) begins the schedule it is built with.",
                state_dict["schedule"],
                ours["schedule"],
                state,
            )
        self._state, self._tick = state, tick
        self._counted_from, self._best_loss = counted_from, best_loss

    def _rate(self, schedule: Schedule, state: int) -> float:
        if not callable(schedule):
            raise TypeError(
                f"schedule is a {type(schedule).__name__}; a callable from state to rate is wanted."
            )
        return max(self.min_lr, checks.finite(schedule(state), f"the rate at state {state}"))


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    try:
        groups = optimizer.param_groups
    except AttributeError:
        groups = None
    if not isinstance(groups, list):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, without param_groups.")
    if not all("lr" in group for group in groups):
        raise ValueError(f"A parameter group of this {type(optimizer).__name__} has no 'lr'.")
    return groups
