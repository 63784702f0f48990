"""Two processes in one directory: the other one acts before every single storage call of the first.

Whatever is read is one whole checkpoint; whatever two writers and two prunes do, what was committed
last is there, whole, and "the last".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt import Checkpointer, CheckpointNotFoundError, ImuckptError, SaveFailedError
from support.faults.interposed import Once, checkpointer_on
from support.faults.invariants import Tally
from support.faults.stories import three_epochs
from support.faults.training import Expectation, Ledger, Net, Training, objects, version_in, write
from support.object_store import Bucket

LONGEST = 300  # storage calls of an act; a sweep that comes there is wrong


def saved_again(url: str) -> None:
    """Save the last epoch again, as version 4."""
    run = Training(Ledger(), url, continue_from=2)
    run.save(3, 4)


def one_more(url: str) -> None:
    """Save the next epoch, as version 4."""
    Training(Ledger(), url).save(4, 4)


def gone_back(url: str) -> None:
    """Go back to epoch 1 and save 2 again, as version 4."""
    Training(Ledger(), url, continue_from=1).save(2, 4)


def deleted(url: str) -> None:
    """Delete the last epoch."""
    catalog = Checkpointer(url)._catalog()
    catalog.delete(3, catalog.stored(3))


def pruned(url: str) -> None:
    """Delete all but the last epoch."""
    Checkpointer(url).prune(keep_last=1)


def start(checkpointer: Checkpointer) -> int:
    """Resume; the version that the objects then hold."""
    model, optimizer = objects()
    started = checkpointer.start(model, optimizer)
    version = started.log[0]
    assert {n for p in model.trained.parameters() for n in p.flatten().tolist()} == {version}
    return version


def load_last(checkpointer: Checkpointer) -> int:
    """Load the last one; the version that the model then holds."""
    model = Net()
    checkpointer.load(model)
    return int(model.trained.bias[0])


def load_third(checkpointer: Checkpointer) -> int:
    """Load epoch 3; the version that the model then holds."""
    model = Net()
    checkpointer.load(model, 3)
    return int(model.trained.bias[0])


def read_third(checkpointer: Checkpointer) -> int | None:
    """Read all parts of epoch 3; the version that they tell, ``None`` for several."""
    return version_in(checkpointer, 3)


def verify_third(checkpointer: Checkpointer) -> int:
    """Verify epoch 3."""
    checkpointer.verify(3)
    return 3


READS: dict[Callable[..., Any], dict[Callable[..., Any], set[int]]] = {
    start: {saved_again: {3, 4}, one_more: {3, 4}, gone_back: {3, 4}, deleted: {2, 3}},
    load_last: {saved_again: {3, 4}, one_more: {3, 4}, gone_back: {3, 4}, deleted: {2, 3}},
    load_third: {saved_again: {3, 4}, deleted: {3}},
    read_third: {saved_again: {3, 4}, deleted: {3}},
    verify_third: {saved_again: {3}, deleted: {3}},
}
"""What is done, what the other process does in between, and the versions that may be found."""


def sweep(directory: Path, act: Callable[..., Any], other: Callable[..., Any]) -> Any:
    """Let the other act before the first call, the second, and so on.

    Yields:
        The directory, the call, and what `act` gave or raised.
    """
    for count in range(1, LONGEST):
        url = str(directory / f"run-{count}")
        three_epochs(Ledger(), url)
        once = Once(partial(other, url), count)
        checkpointer = checkpointer_on(url, once)
        try:
            given = act(checkpointer)
        except ImuckptError as error:
            given = error
        if once.call is None:
            return
        yield url, once.call, given
    pytest.fail("it never ended")


@pytest.mark.parametrize("read", READS, ids=lambda f: f.__name__)
def test_what_is_read_beside_another_process_is_one_whole_checkpoint(
    read: Callable[..., Any], tmp_path: Path, tally: Tally
) -> None:
    """Saved again, deleted or left behind between any two calls: the old one, the new, or gone."""
    wrong = []
    for other, versions in READS[read].items():
        for _, call, given in sweep(tmp_path / other.__name__, read, other):
            tally.checked["two processes"] += 1
            gone = isinstance(given, CheckpointNotFoundError)
            # A part that is asked for when its checkpoint is no more says so.
            gone = gone and (versions == {3} or read is read_third)
            if given not in versions and not gone:
                wrong.append((other.__name__, call, given))
    assert wrong == []


def save_next(checkpointer: Checkpointer) -> None:
    """Resume and save epoch 4, as version 5."""
    model, optimizer = objects()
    epoch = checkpointer.start(model, optimizer).start_epoch
    write(checkpointer, epoch, 5, model, optimizer)


def save_again(checkpointer: Checkpointer) -> None:
    """Go back to epoch 2 and save 3, as version 5."""
    model, optimizer = objects()
    checkpointer.start(model, optimizer, continue_from=2)
    write(checkpointer, 3, 5, model, optimizer)


def one(*versions: int | None) -> frozenset[int | None]:
    return frozenset(versions)


@pytest.mark.parametrize(
    ("save", "other"),
    [
        (save_next, one_more),
        (save_next, saved_again),
        (save_next, gone_back),
        (save_again, one_more),
        (save_again, saved_again),
        (save_again, gone_back),
    ],
    ids=lambda f: f.__name__,
)
def test_of_two_writers_whatever_is_committed_is_whole(
    save: Callable[..., Any], other: Callable[..., Any], tmp_path: Path, tally: Tally
) -> None:
    """A save that is told to be done is there, unless another run has saved after it."""
    found = Tally()
    for url, call, given in sweep(tmp_path, save, other):
        assert given is None or isinstance(given, SaveFailedError), (call, given)
        epochs = {e: one(e, 4, 5) if e > 1 else one(e) for e in (1, 2, 3)}
        expected = Expectation({**epochs, 4: one(None, 4, 5), 5: one(None, 5)}, one(2, 3, 4, 5))
        found.check("two processes", f"{other.__name__} before {call}", url, expected)
    tally.merge(found)
    assert found.reports == []


def prune(checkpointer: Checkpointer) -> None:
    """Delete all but the last epoch, and what it came from."""
    checkpointer.prune(keep_last=1)


@pytest.mark.parametrize(
    ("other", "last"),
    [(one_more, 4), (saved_again, 3), (gone_back, 2), (pruned, 3)],
    ids=["one_more", "saved_again", "gone_back", "pruned"],
)
def test_prune_beside_another_process_keeps_what_is_newest(
    other: Callable[..., Any], last: int, tmp_path: Path, tally: Tally
) -> None:
    """A prune whose view is stale deletes nothing of a branch that has begun since."""
    found = Tally()
    for url, call, given in sweep(tmp_path, prune, other):
        assert given is None, (call, given)
        version = 3 if other is pruned else 4
        epochs = {e: one(e, None) for e in (1, 2, 3)}
        expected = Expectation({**epochs, last: one(version)}, one(last))
        found.check("two processes", f"{other.__name__} before {call}", url, expected)
    tally.merge(found)
    assert found.reports == []


def test_a_listing_that_lags_is_no_damage(tally: Tally) -> None:
    """What it still shows and is gone is passed over; what it does not show yet is not harmed."""
    bucket = Bucket()
    url = "objects://bucket/run"
    options: dict[str, Any] = {"storage_options": {"bucket": bucket}}
    three_epochs(Ledger(), url, **options)
    gone = [name for name in bucket.objects if "checkpoint=3/" in name]
    for name in gone:
        bucket.change(partial(bucket.objects.pop, name))
    bucket.lag = len(gone)
    reader = Checkpointer(url, **options)
    assert reader.list_existing_checkpoint_indices() == [1, 2, 3], "the listing lags"
    assert load_last(reader) == 2
    assert start(Checkpointer(url, **options)) == 2
    with pytest.raises(CheckpointNotFoundError):
        load_third(reader)
    assert reader.prune(keep_last=1, dry_run=True) == [1]
    bucket.lag = 0
    Training(Ledger(), url, **options).save(3, 4)
    bucket.lag = 1  # the manifest of 3 is not listed yet
    assert start(Checkpointer(url, **options)) in (2, 4)
    assert load_third(reader) == 4
