"""The position in the batches of an epoch: kept, and found again with what is drawn on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ray_imuckpt import StateMismatchError
from ray_imuckpt.integrations.batches import Batches, apply_loaders, take_loaders
from ray_imuckpt.state.random_state import apply_random, take_random


class Noisy:
    """Eight items that draw when they are read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(1)


class Combined:
    """Loaders as Lightning combines them: here, one."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.flattened = [loader]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.flattened[0])

    def reset(self) -> None:
        """Nothing is open."""


def batches(ahead: int, between: Callable[[], None]) -> Batches:
    loader = DataLoader(Noisy(), 2, shuffle=True, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type,var-annotated]
    return Batches(Combined(loader), 4 if ahead == 0 else None, ahead, between)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("trained", [1, 2])
def test_the_rest_of_an_epoch_is_the_same_again(ahead: int, trained: int) -> None:
    """Also the batch that was fetched ahead, though training has drawn since it was fetched."""
    torch.manual_seed(0)
    kept: list[Any] = []
    fetched = Counter[str]()

    def keep() -> None:
        if fetched["whole"] == trained + ahead:
            kept.extend([whole.state_dict(), take_random()])

    def go_on() -> None:
        if fetched["resumed"] == ahead:
            apply_random(kept[1])

    whole, resumed = batches(ahead, keep), batches(ahead, go_on)
    expected = drawn_from(whole, ahead, fetched, "whole")
    torch.manual_seed(99)
    resumed.resume(kept[0], trained)
    assert drawn_from(resumed, ahead, fetched, "resumed") == expected[trained:]


def drawn_from(made: Batches, ahead: int, fetched: Counter[str], name: str) -> list[Any]:
    """Return the batches, fetched as Lightning does, while training draws in between."""
    iterator, waiting, used = iter(made), [], []
    while (batch := next(iterator, None)) is not None:
        fetched[name] += 1
        waiting.append(batch.tolist())
        if len(waiting) > ahead:
            used.append(waiting.pop(0))
            torch.rand(5)
    return used + waiting


def test_other_loaders_than_were_saved_are_told() -> None:
    """Their number, and that of the generators they were built with."""
    one = DataLoader(Noisy(), 2)  # type: ignore[arg-type,var-annotated]
    drawn = DataLoader(Noisy(), 2, generator=torch.Generator())  # type: ignore[arg-type,var-annotated]
    with pytest.raises(StateMismatchError, match="had 2 loaders when it was saved, and has 1 now"):
        apply_loaders([one], take_loaders([one, drawn]))
    with pytest.raises(StateMismatchError, match="had 1 generators of loaders"):
        apply_loaders([one], take_loaders([drawn]))
