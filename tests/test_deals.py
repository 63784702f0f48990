"""Where a gang of another size goes on in mid-epoch: behind the same samples, or with a warning."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from ray_imuckpt.integrations.deals import Deal, position_of, tell

DATA: Any = list(range(48))


def loader(ranks: int, rank: int, *, shuffle: bool, size: int = 2) -> Any:
    if ranks == 1 and not shuffle:
        return DataLoader(DATA, size)
    return DataLoader(DATA, size, sampler=DistributedSampler(DATA, ranks, rank, shuffle=shuffle))


def taken(ranks: int, batches: int, *, shuffle: bool, size: int = 2) -> set[int]:
    """Return the samples in the first batches of all ranks."""
    found = set()
    for rank in range(ranks):
        given = iter(loader(ranks, rank, shuffle=shuffle, size=size))
        found |= {sample for _ in range(batches) for sample in next(given).tolist()}
    return found


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("then", "now"), [(2, 1), (2, 3), (3, 1), (4, 2), (1, 4)])
def test_another_gang_passes_over_the_samples_that_were_trained_on(
    then: int, now: int, shuffle: bool
) -> None:
    """These and no others, where the order is of no rank's own."""
    trained = 12 // then
    deal, dealt = (Deal.of([loader(n, 0, shuffle=shuffle)], n) for n in (then, now))
    found = position_of(deal, dealt, trained, multiple=1, length=None)
    seen = taken(then, trained, shuffle=shuffle)
    assert found.exact
    assert taken(now, found.batches, shuffle=shuffle) == seen


def test_batches_of_another_size_are_counted_by_their_samples() -> None:
    """Also where the gang is the same."""
    then, now = (Deal.of([loader(2, 0, shuffle=True, size=size)], 2) for size in (2, 6))
    assert position_of(then, now, 6, multiple=1, length=None) == (2, True)
    assert taken(2, 2, shuffle=True, size=6) == taken(2, 6, shuffle=True)


def test_what_does_not_come_out_even_begins_earlier(caplog: pytest.LogCaptureFixture) -> None:
    """No sample is left out for it; an optimizer step is whole; an epoch has a batch left."""
    then, now = Deal(2, 4, "a"), Deal(3, 6, "a")
    assert position_of(then, now, 4, multiple=1, length=None) == (2, False)
    assert position_of(then, now, 6, multiple=4, length=None) == (4, True)
    assert position_of(then, now, 9, multiple=4, length=None) == (4, False)
    assert position_of(then, now, 9, multiple=1, length=6) == (5, False)
    tell(then, now, position_of(then, now, 4, multiple=1, length=None))
    assert "by 2 ranks and 4 samples at a time, and goes on with 3 ranks and 6" in caplog.text
    assert "twice" in caplog.text
    assert "never" not in caplog.text


def test_an_order_that_is_not_known_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that draws is another one on another gang."""
    drawn = Deal.of([DataLoader(DATA, 2, sampler=RandomSampler(DATA))], 1)
    several = Deal.of([loader(2, 0, shuffle=True), loader(2, 0, shuffle=False)], 2)
    by_length = type("ByLength", (BatchSampler,), {})(SequentialSampler(DATA), 2, drop_last=False)
    own = Deal.of([DataLoader(DATA, batch_sampler=by_length)], 2)  # its `sampler` says nothing
    assert drawn.order is several.order is own.order is None
    assert Deal.of([DataLoader(DATA, batch_size=None)], 2) == (2, 2, "as they lie")
    found = position_of(drawn, several, 6, multiple=1, length=None)
    assert found == (3, False)
    tell(drawn, several, found)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "some are trained on twice, or never" in record.getMessage()
