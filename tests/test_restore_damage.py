"""A damaged checkpoint is passed over or an error, and a run never goes on with a part of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    StateMismatchError,
    StorageError,
    load,
)
from ray_imuckpt.storage import Reading
from ray_imuckpt.storage.local import LocalStorage
from support.restores import flip, large


@pytest.mark.parametrize("pattern", ["model-*", "model_frozen-*", "optimizer-*"])
def test_altered_bytes_behind_good_ones_fall_back_to_exactly_the_older_state(
    tmp_path: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the damaged one has overwritten is overwritten by the older one, all of it."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    older, older_optimizer = large()
    checkpointer.checkpoint(1, model=older, optimizer=older_optimizer, log=[1])
    newer, newer_optimizer = large(seed=1)
    checkpointer.checkpoint(2, model=newer, optimizer=newer_optimizer, log=[1, 2])
    flip(tmp_path / "checkpoint=2", pattern, -1)
    model, optimizer = large(seed=2)
    with caplog.at_level(logging.WARNING):
        started = Checkpointer(tmp_path).start(model, optimizer)
    assert "damaged" in caplog.text
    assert started.start_epoch == 2
    assert started.log == [1]
    assert same_bytes(dict(model.state_dict()), dict(older.state_dict()))
    assert same_bytes(optimizer.state_dict(), older_optimizer.state_dict())


def test_altered_bytes_of_an_epoch_asked_for_say_what_the_objects_may_hold(tmp_path: Path) -> None:
    """Nothing else is taken instead, and the error warns of the part that was read."""
    saved, optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=optimizer)
    flip(tmp_path / "checkpoint=1", "model-*", -1)
    for call in (
        lambda: Checkpointer(tmp_path).start(*large(seed=1), continue_from=1),
        lambda: load(large(seed=1)[0], tmp_path / "checkpoint=1"),
    ):
        with pytest.raises(CorruptCheckpointError, match="may hold a part of this epoch"):
            call()


def test_a_storage_that_fails_in_the_middle_is_told_with_what_the_objects_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some bytes have been read into them by then; objects by keyword are as they were."""
    saved, optimizer = large()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=saved, optimizer=optimizer, scheduler=scheduler
    )
    real = LocalStorage.read_all

    def read_all(self: LocalStorage, readings: Sequence[Reading]) -> None:
        if sum(reading.size for reading in readings) > 2**20:  # all but headers and trees
            real(self, readings[:-1])
            raise StorageError("the disk is gone", url=self.url)
        real(self, readings)

    monkeypatch.setattr(LocalStorage, "read_all", read_all)
    model, optimizer = large(seed=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    before = scheduler.state_dict()
    with pytest.raises(StorageError, match=r"gone(?s:.*)model, optimizer may hold a part of epoch"):
        Checkpointer(tmp_path).start(model, optimizer, scheduler=scheduler)
    assert scheduler.state_dict() == before
    with pytest.raises(StorageError, match=r"gone(?s:.*)do: model may hold a part of epoch 1"):
        load(model, tmp_path / "checkpoint=1")


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("pattern", ["model-*", "model_frozen-*", "optimizer-*", "state-*.json"])
def test_a_file_that_is_cut_or_gone_is_found_before_anything_is_changed(
    tmp_path: Path, pattern: str, damage: str
) -> None:
    """Sizes are looked at before the first byte goes into a live tensor."""
    saved, saved_optimizer = large()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, optimizer=saved_optimizer)
    (path,) = (tmp_path / "checkpoint=1").glob(pattern)
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])
    model, optimizer = large(seed=1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CorruptCheckpointError, match="missing|bytes instead of"):
        Checkpointer(tmp_path).start(model, optimizer, continue_from=1)
    assert same_bytes(dict(model.state_dict()), before)
    assert not same_bytes(optimizer.state_dict(), saved_optimizer.state_dict())


def test_an_older_checkpoint_that_cannot_make_good_for_a_damaged_one_is_an_error(
    tmp_path: Path,
) -> None:
    """What only the damaged one held would keep a part of it: the error names it."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=nn.ModuleDict({"body": large()[0]}))
    checkpointer.checkpoint(
        2, model=nn.ModuleDict({"body": large(seed=1)[0], "head": nn.Linear(2, 2)})
    )
    flip(tmp_path / "checkpoint=2", "model_frozen-*", -1)
    model = nn.ModuleDict({"body": large(seed=2)[0], "head": nn.Linear(2, 2)})
    with pytest.raises(StateMismatchError, match="could not make good") as caught:
        Checkpointer(tmp_path).start(model, strict=False)
    assert caught.value.missing == ["model.head.bias", "model.head.weight"]
    assert "continue_from=1" in str(caught.value)


def test_altered_bytes_behind_good_ones_leave_the_objects_by_keyword_as_they_were(
    tmp_path: Path,
) -> None:
    """They took their state before the damage was found, and are undone."""
    saved, optimizer = large()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=saved, scheduler=scheduler)
    flip(tmp_path / "checkpoint=1", "model-*", -1)
    model, optimizer = large(seed=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    before = scheduler.state_dict()
    with pytest.raises(CorruptCheckpointError, match="may hold a part of this epoch"):
        Checkpointer(tmp_path).start(model, scheduler=scheduler, continue_from=1)
    assert scheduler.state_dict() == before


def test_a_misfit_behind_a_damaged_checkpoint_says_what_the_objects_may_hold(
    tmp_path: Path,
) -> None:
    """The error of the older one warns of what the newer one left."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    checkpointer.checkpoint(2, model=large()[0])
    flip(tmp_path / "checkpoint=2", "model-*", -1)
    with pytest.raises(StateMismatchError, match="does not fit.*may hold that part"):
        Checkpointer(tmp_path).start(large(seed=1)[0])
