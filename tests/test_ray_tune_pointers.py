"""Pointers that Ray Tune gives a trial to resume from: followed, outdated, to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import Checkpointer, CheckpointNotFoundError, Retention
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import selection
from ray_imuckpt.loading.decision import Offer
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.storage import Storage, open_storage
from ray_imuckpt.storage.local import LocalStorage


def pointer_to(trial: Path, epoch: int, *, sibling: bool = True) -> Path:
    """What Tune hands a trial that is tried again: the pointer of an epoch that it reported."""
    pointer = trial / "checkpoint_000001"
    pointer.mkdir(parents=True, exist_ok=True)
    content = {"url": str(trial / f"checkpoint={epoch}")}
    if sibling:
        content["sibling"] = f"checkpoint={epoch}"
    (pointer / "imuckpt-pointer.json").write_text(json.dumps(content))
    return pointer


def go_on(trial: Path, pointer: Path, model: nn.Module) -> int:
    """The epoch that a trial goes on from."""
    targets = Targets(model, adamw(model))
    offer = Offer(open_storage(str(pointer)))
    found = selection.restore(
        Gang(), open_storage(str(trial)), "none", None, targets, strict=True, offer=offer
    )
    assert found is not None
    assert not found.foreign
    return found.checkpoint.epoch


@pytest.mark.parametrize("sibling", [True, False])
def test_a_reported_checkpoint_that_was_pruned_or_damaged_gives_way_to_the_trials_newest(
    trained: Any, sibling: bool
) -> None:
    """Tune's record of a trial lags behind what the trial has saved and pruned since."""
    directory = trained(8, save_every=2)
    pointer = pointer_to(directory, 4, sibling=sibling)
    Checkpointer(directory).prune(keep_last=2)
    model = small_model(5)
    assert go_on(directory, pointer, model) == 8
    assert same_bytes(dict(model.state_dict()), Checkpointer(directory).read(8).model)

    manifest = directory / "checkpoint=8" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert go_on(directory, pointer_to(directory, 8, sibling=sibling), model) == 6
    assert same_bytes(dict(model.state_dict()), Checkpointer(directory).read(6).model)

    (pointer / "imuckpt-pointer.json").write_text("{")
    assert go_on(directory, pointer, small_model(5)) == 6


def test_a_trial_whose_directory_or_donor_vanished_is_told_so_and_keeps_its_objects(
    trained: Any, tmp_path: Path
) -> None:
    """What is gone is named, and nothing else is restored instead."""
    model = small_model(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vanished = tmp_path / "vanished"
    with pytest.raises(CheckpointNotFoundError, match="vanished/checkpoint=4"):
        go_on(vanished, pointer_to(vanished, 4), model)
    # Another trial's is not replaced by something else.
    with pytest.raises(CheckpointNotFoundError, match="donor/checkpoint=4"):
        go_on(trained(4), pointer_to(tmp_path / "donor", 4), model)
    assert same_bytes(dict(model.state_dict()), before)


def exploit(trial: Path, offered: Storage, model: nn.Module) -> selection.Resumed:
    """What a trial goes on from that PBT gives another trial's checkpoint."""
    found = selection.restore(
        Gang(),
        open_storage(str(trial)),
        "last",
        None,
        Targets(model, None),
        strict=True,
        offer=Offer(offered),
    )
    assert found is not None
    return found


def test_a_donor_that_has_deleted_what_it_reported_gives_its_newest(
    trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With keep_last=1 it has always gone on when the other trial starts; and again, once only."""
    donor, trial = trained(8, retention=Retention(keep_last=1)), tmp_path / "trial"
    pointer, model = open_storage(str(pointer_to(donor, 4))), small_model(5)
    found = exploit(trial, pointer, model)
    assert (found.checkpoint.epoch, found.foreign) == (8, True)
    assert same_bytes(dict(model.state_dict()), Checkpointer(donor).read(8).model)
    assert "Epoch 4" in caplog.text
    assert "going on from the newest one there, epoch 8" in caplog.text
    run, _ = selection.begin(
        Gang(),
        open_storage(str(trial)),
        "last",
        RunIdentity(),
        Targets(model, None),
        strict=True,
        offer=Offer(pointer),
    )
    saver = Checkpointer(trial, blocking=True)
    saver._training._saver.run = run
    caplog.clear()
    saver.checkpoint(9, model=model)
    assert "Frozen" not in caplog.text  # its parent's files lie elsewhere
    train(donor, 10, retention=Retention(keep_last=1))
    found = exploit(trial, pointer, model)  # the trial is tried again: it has come from there
    assert (found.checkpoint.epoch, found.foreign) == (9, False)


class Deleting(LocalStorage):
    """A checkpoint that is pruned as soon as its manifest was read."""

    def get(self, name: str) -> bytes:
        data = super().get(name)
        Checkpointer(Path(self.url).parent).prune(keep_last=1)
        return data


def test_a_donor_may_delete_while_the_other_trial_reads(trained: Any, tmp_path: Path) -> None:
    """What is gone in the middle of a read is looked for again."""
    donor, model = trained(8), small_model(5)
    found = exploit(tmp_path / "trial", Deleting(str(donor / "checkpoint=4")), model)
    assert (found.checkpoint.epoch, found.foreign) == (8, True)
    assert same_bytes(dict(model.state_dict()), Checkpointer(donor).read(8).model)


def test_a_pointer_to_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    """The error says which checkpoint the pointer speaks of."""
    pointer = tmp_path / "trial" / "checkpoint_000000"
    pointer.mkdir(parents=True)
    content = {"url": str(tmp_path / "gone" / "checkpoint=3"), "sibling": "checkpoint=3"}
    (pointer / "imuckpt-pointer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointNotFoundError, match="trial/checkpoint=3"):
        Checkpointer(tmp_path).read(pointer)
