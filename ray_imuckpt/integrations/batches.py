"""The batches of a run, and the position in them: kept by a save, and found again by a restart.

A loader with a ``state_dict`` knows its position. Any other one is drawn anew from where its epoch
began, with the random numbers of then, and the batches that were trained on are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.objects import Stateful
from ray_imuckpt.state.random_state import (
    apply_generator,
    apply_random,
    take_generator,
    take_random,
)


class Combined(Protocol):
    """One or several loaders that give one batch together."""

    @property
    def flattened(self) -> list[Any]:
        """Return the loaders."""

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over their batches."""

    def reset(self) -> None:
        """End what iterates over them."""


def take_loaders(loaders: Sequence[Any]) -> dict[str, Any]:
    """Return the states of loaders, and of the generators that they were built with."""
    return {
        "loaders": [each.state_dict() if isinstance(each, Stateful) else None for each in loaders],
        "generators": take_generators(loaders),
    }


def apply_loaders(loaders: Sequence[Any], state: dict[str, Any]) -> None:
    """Apply the states that `take_loaders` gave.

    Raises:
        StateMismatchError: They are of more or fewer loaders.
    """
    _check_number("loaders", len(state["loaders"]), len(loaders))
    for loader, saved in zip(loaders, state["loaders"], strict=True):
        if saved is not None:
            loader.load_state_dict(saved)
    apply_generators(loaders, state["generators"])


def take_generators(loaders: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the states of the generators that loaders were built with."""
    return [take_generator(generator) for generator in _generators(loaders)]


def apply_generators(loaders: Sequence[Any], states: Sequence[dict[str, Any]]) -> None:
    """Apply the states that `take_generators` gave.

    Raises:
        StateMismatchError: They are of more or fewer generators.
    """
    generators = _generators(loaders)
    _check_number("generators of loaders", len(states), len(generators))
    for generator, saved in zip(generators, states, strict=True):
        apply_generator(generator, saved)


class Batches:
    """Loaders that stand for themselves, epoch by epoch, and whose position can be kept.

    Nothing is drawn from the loaders before the first batch of an epoch is asked for, so that what
    is drawn in between makes no difference to a restart.

    Args:
        loader: The loaders.
        length: How many batches an epoch has; ``None`` if that is not known.
        ahead: How many batches whoever asks is ahead of training.
        between: Called before each batch that is fetched while an epoch is trained: all of the one
            before is done then, and nothing of the next has begun.
    """

    def __init__(
        self, loader: Combined, length: int | None, ahead: int, between: Callable[[], None]
    ) -> None:
        self._loader = loader
        self._length = length
        self._between = between
        self._ahead = ahead
        self._fetched = 0
        self._iterator: Iterator[Any] | None = None
        self._began: dict[str, Any] | None = None
        self._earlier: deque[dict[str, Any]] = deque(maxlen=ahead)
        self._resumed: dict[str, Any] | None = None
        self._again: deque[dict[str, Any]] = deque()

    @property
    def flattened(self) -> list[Any]:
        """Return the loaders."""
        return self._loader.flattened

    @property
    def length(self) -> int | None:
        """Return how many batches an epoch has; ``None`` if that is not known."""
        return self._length

    def __len__(self) -> int:
        """Return how many batches an epoch has.

        Raises:
            TypeError: That is not known.
        """
        if self._length is None:
            raise TypeError("The loader has no length.")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Return itself, about to begin an epoch."""
        self._fetched, self._iterator = 0, None
        self._earlier.clear()
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        if self._iterator is None:
            self._iterator = self._begin()
        self._fetched += 1
        if self._fetched > self._ahead:
            self._between()
        if self._again:
            apply_random(self._again.popleft()["random"])
        if self._ahead:  # what a restart draws the batches from that were fetched ahead
            self._earlier.append({"random": take_random(), **take_loaders(self.flattened)})
        return next(self._iterator)

    def reset(self) -> None:
        """End what iterates over the loaders."""
        self._loader.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, to be asked for by `between`."""
        now = take_loaders(self.flattened)
        earlier = list(self._earlier)
        return {"began": self._began, "earlier": earlier, **(earlier[0] if earlier else now)}

    def resume(self, state: dict[str, Any] | None, trained: int) -> None:
        """Begin the next epoch in its middle.

        Args:
            state: What `state_dict` gave; ``None`` where that is of another gang.
            trained: How many batches of it are passed over.
        """
        self._resumed = {"state": state, "trained": trained}

    def _begin(self) -> Iterator[Any]:
        resumed, self._resumed = self._resumed, None
        trained = 0 if resumed is None else resumed["trained"]
        state = None if resumed is None else resumed["state"]
        if state is None:
            self._began = {"random": take_random(), **take_loaders(self.flattened)}
            return self._passed_over(trained)
        self._began = state["began"]
        self._again = deque(state["earlier"])
        if all(saved is not None for saved in state["loaders"]):
            apply_loaders(self.flattened, state)
            return iter(self._loader)
        apply_random(state["began"]["random"])
        apply_loaders(self.flattened, state["began"])
        iterator = self._passed_over(trained)
        apply_generators(self.flattened, state["generators"])
        return iterator

    def _passed_over(self, trained: int) -> Iterator[Any]:
        iterator = iter(self._loader)
        for _ in range(trained):
            next(iterator)
        return iterator


def _check_number(what: str, saved: int, here: int) -> None:
    if saved != here:
        raise StateMismatchError(
            f"This run had {saved} {what} when it was saved, and has {here} now.",
            hint="Build the loaders as they were; the model is restored: build it anew as well.",
        )


def _generators(loaders: Sequence[Any]) -> list[torch.Generator]:
    """Return the generators that loaders were built with, each once, in an order that stays."""
    holders = [
        holder
        for loader in loaders
        for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        for holder in (loader, sampler, getattr(sampler, "sampler", None))
    ]
    seeded = "SeedableRandomSampler"  # of accelerate: it seeds its own anew in every epoch
    found = [
        getattr(holder, "generator", None) for holder in holders if type(holder).__name__ != seeded
    ]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
