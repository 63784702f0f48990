"""A training run so small that thousands of its checkpoints can be tried; and what it should leave.

Everything that a checkpoint holds tells the version that was saved, so that a mixture of two saves
cannot pass for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ray_imuckpt import Checkpointer, SaveFailedError

Version = int


class Net(nn.Module):
    """Four numbers that are trained, and two that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(1, 2)
        self.frozen = nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def become(self, version: Version, frozen: int = 1) -> None:
        """Hold a version's numbers, and the frozen ones' own."""
        with torch.no_grad():
            for parameter in self.trained.parameters():
                parameter.fill_(version)
            for parameter in self.frozen.parameters():
                parameter.fill_(frozen)


def objects() -> tuple[Net, torch.optim.Optimizer]:
    """Return a model and its optimizer, newly built."""
    model = Net()
    return model, torch.optim.SGD(model.trained.parameters(), lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class Expectation:
    """What may be found in a directory.

    Attributes:
        epochs: For each epoch the versions that its checkpoint may hold; ``None``: it may be
            missing. An epoch that is not here has no checkpoint.
        lasts: The epochs that may be "the last", ``None`` for none.
    """

    epochs: Mapping[int, frozenset[Version | None]] = field(default_factory=dict)
    lasts: frozenset[int | None] = frozenset([None])

    def saved(self, epoch: int, version: Version) -> Expectation:
        """Return what is expected once a save is committed."""
        return Expectation({**self.epochs, epoch: frozenset([version])}, frozenset([epoch]))

    def without(self, *epochs: int) -> Expectation:
        """Return what is expected once these are deleted."""
        return Expectation({e: v for e, v in self.epochs.items() if e not in epochs}, self.lasts)

    def either(self, other: Expectation, *lasts: int | None) -> Expectation:
        """Return what is expected when this or the other may hold, or these be the last."""
        nothing: frozenset[Version | None] = frozenset([None])
        epochs = {
            epoch: self.epochs.get(epoch, nothing) | other.epochs.get(epoch, nothing)
            for epoch in {*self.epochs, *other.epochs}
        }
        return Expectation(epochs, self.lasts | other.lasts | frozenset(lasts))


class Ledger:
    """What may be found at each moment of a story."""

    def __init__(self) -> None:
        self.expectations = [Expectation()]
        self._mark: Callable[[int], None] | None = None

    @property
    def now(self) -> Expectation:
        """What may be found now."""
        return self.expectations[-1]

    def begin(self, mark: Callable[[int], None]) -> None:
        """Call this with the number of each expectation from the moment on at which it holds."""
        self._mark = mark
        self.expect(self.now)

    def expect(self, expectation: Expectation) -> None:
        """Expect this from now on."""
        self.expectations.append(expectation)
        if self._mark is not None:
            self._mark(len(self.expectations) - 1)

    @contextlib.contextmanager
    def saving(self, epoch: int, version: Version, parent: int | None) -> Iterator[None]:
        """Expect a save while this lasts, and then what it told: done, failed, or unknown.

        Args:
            epoch: What is saved.
            version: What it holds.
            parent: What its run came from: "the last" from the moment at which the new branch is
                recorded to the commit.
        """
        before, after = self.now, self.now.saved(epoch, version)
        self.expect(before.either(after, parent))
        try:
            yield
        except SaveFailedError as error:
            if "nothing was committed" in str(error) or "does not hold" in str(error):
                self.expect(before)
            raise
        self.expect(after)

    @contextlib.contextmanager
    def pruning(self, *doomed: int) -> Iterator[None]:
        """Expect that these go while this lasts, and are gone after it."""
        before, after = self.now, self.now.without(*doomed)
        self.expect(before.either(after))
        yield
        self.expect(after)


class Training:
    """A process that trains in a directory.

    Args:
        ledger: Where what it does is entered.
        url: The directory.
        continue_from: As for `Checkpointer`.
        **options: As for `Checkpointer`.
    """

    def __init__(
        self, ledger: Ledger, url: str, continue_from: str | int = "last", **options: Any
    ) -> None:
        self.ledger = ledger
        self.checkpointer = Checkpointer(url, continue_from=continue_from, blocking=True, **options)
        self.model, self.optimizer = objects()
        started = self.checkpointer.start(self.model, self.optimizer)
        self.parent: int | None = started.start_epoch - 1 or None

    def save(self, epoch: int, version: Version, frozen: int = 1) -> None:
        """Save a version as an epoch's checkpoint."""
        with self.ledger.saving(epoch, version, self.parent):
            write(self.checkpointer, epoch, version, self.model, self.optimizer, frozen)
        self.parent = epoch

    def prune(self, *doomed: int, **rules: Any) -> None:
        """Prune, which deletes these."""
        with self.ledger.pruning(*doomed):
            self.checkpointer.prune(**rules)


def write(
    checkpointer: Checkpointer,
    epoch: int,
    version: Version,
    model: Net,
    optimizer: torch.optim.Optimizer,
    frozen: int = 1,
) -> None:
    """Save a version, told by every part of the checkpoint."""
    model.become(version, frozen)
    for parameter in model.trained.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, version)
    checkpointer.checkpoint(
        epoch,
        model=model,
        optimizer=optimizer,
        log=[version, frozen],
        metrics={"version": version},
        extra={"version": version, "tensor": torch.full((2,), float(version))},
    )


def version_in(checkpointer: Checkpointer, epoch: int) -> Version | None:
    """Return the version that a checkpoint holds, ``None`` when its parts disagree."""
    loaded = checkpointer.read(epoch)
    version, frozen = loaded.log
    told = [loaded.metrics["version"], loaded.other["extra"]["version"]]
    told += loaded.other["extra"]["tensor"].tolist()
    for name, tensor in loaded.model.items():
        if name.startswith("trained"):
            told += tensor.flatten().tolist()
        elif tensor.flatten().tolist() != [frozen]:
            return None
    assert loaded.optimizer is not None
    for state in loaded.optimizer["state"].values():
        told += state["momentum_buffer"].flatten().tolist()
    return version if set(told) == {version} else None
