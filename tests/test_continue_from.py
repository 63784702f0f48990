"""`continue_from` takes a checkpoint by its place, in this directory or in another run's."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import (
    Best,
    Checkpointer,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    StorageError,
)
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import selection
from ray_imuckpt.loading.decision import Offer
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.storage import open_storage

WAYS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "Path": lambda path: path,
    "URL": lambda path: f"file://{path}",
    "Ray's": lambda path: Checkpointer(path.parent).get(int(path.name.partition("=")[2])),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_place_in_the_runs_own_directory_means_its_epoch(tmp_path: Path, way: str) -> None:
    """The same branch begins there as with the number, also in the call of start."""
    train(tmp_path, 5)
    place = WAYS[way](tmp_path / "checkpoint=2")
    assert train(tmp_path, 3, continue_from=place)[3] == 3
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.index_of_last_checkpoint() == 3
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5]
    assert checkpointer.start(small_model(), continue_from=place).start_epoch == 3


@pytest.mark.parametrize("way", WAYS)
def test_from_another_runs_checkpoint_a_new_run_begins(tmp_path: Path, way: str) -> None:
    """Everything comes from there, the epochs go on, and the parent is in the manifest."""
    whole, _, whole_log, _ = train(tmp_path / "whole", 5)
    train(tmp_path / "a", 3)
    place = WAYS[way](tmp_path / "a" / "checkpoint=3")
    model, optimizer, log, first = train(tmp_path / "b", 5, continue_from=place)
    assert first == 4
    assert log == whole_log
    assert same_bytes(dict(model.state_dict()), dict(whole.state_dict()))
    assert optimizer.param_groups[0]["lr"] < 1e-2, "the options too"
    checkpointer = Checkpointer(tmp_path / "b")
    assert checkpointer.list_existing_checkpoint_indices() == [4, 5]
    donor = Checkpointer(tmp_path / "a").read(3).manifest
    parent = checkpointer.read(4).manifest.parent
    assert parent is not None
    assert (parent.epoch, parent.save_id) == (3, donor.save_id)
    assert Checkpointer(tmp_path / "a").list_existing_checkpoint_indices() == [1, 2, 3]


def test_a_run_that_began_elsewhere_goes_on_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that is started again with the same place does not lose what it has trained."""
    caplog.set_level(logging.INFO, "ray_imuckpt")
    for directory, last in (("a", 4), ("c", 4)):
        train(tmp_path / directory, last)
    place = tmp_path / "a" / "checkpoint=2"
    run = tmp_path / "b"
    assert train(run, 3, continue_from=place)[3] == 3
    caplog.clear()
    assert train(run, 4, continue_from=place)[3] == 4, "its own newest"
    assert any("came from epoch 2 of run" in record.message for record in caplog.records)
    assert train(run, 5, continue_from=place)[3] == 5, "that of a start after it"
    assert train(run, 6)[3] == 6, "the last means the same"
    # Another place is another wish: from there a branch begins.
    assert train(run, 4, continue_from=tmp_path / "a" / "checkpoint=3")[3] == 4
    assert Checkpointer(run).index_of_last_checkpoint() == 4
    assert train(run, 5, continue_from=tmp_path / "c" / "checkpoint=3")[3] == 4
    assert Checkpointer(run).list_existing_checkpoint_indices() == [3, 4, 5, 6]


def test_a_start_that_saved_nothing_begins_there_again(tmp_path: Path) -> None:
    """The run has no checkpoint of its own to go on from."""
    train(tmp_path / "a", 3)
    place = tmp_path / "a" / "checkpoint=2"
    for _ in range(2):
        model = small_model(seed=8)
        started = Checkpointer(tmp_path / "b", continue_from=place).start(model)
        assert started.start_epoch == 3
    assert Checkpointer(tmp_path / "b").start(small_model()).start_epoch == 1


def test_a_restart_goes_on_whatever_place_was_given(tmp_path: Path) -> None:
    """Ray and torchrun restart the same run; its newest checkpoint goes before everything."""
    train(tmp_path / "a", 3)
    storage = open_storage(str(tmp_path / "b"))
    offer = Offer(open_storage(str(tmp_path / "a" / "checkpoint=3")))
    identity = RunIdentity("ray-run", may_be_restart=True)
    for expected in (3, 3):
        model = small_model(seed=3)
        targets = Targets(model, None, {}, {}, None)
        run, loaded = selection.begin(Gang(), storage, offer, identity, targets, strict=True)
        assert loaded is not None
        assert (loaded.epoch, run.foreign) == (expected, True)
    made = Checkpointer(tmp_path / "b", blocking=True)
    made.start(small_model(), continue_from="none")
    assert made._training.run is not None
    made._training.run.id = "ray-run"
    made.checkpoint(1, model=small_model())
    run, loaded = selection.begin(Gang(), storage, offer, identity, targets, strict=True)
    assert loaded is not None
    assert (loaded.epoch, run.foreign) == (1, False), "it did not come from there, and is the run's"


def test_a_pointer_leads_to_the_place(tmp_path: Path) -> None:
    """What Ray holds of a run may be a pointer into its directory, or into another one's."""
    train(tmp_path / "a", 3)
    pointer = tmp_path / "ray" / "checkpoint=2"
    pointer.mkdir(parents=True)
    url = str(tmp_path / "a" / "checkpoint=2")
    (pointer / "imuckpt-pointer.json").write_text(json.dumps({"url": url}))
    assert Checkpointer(tmp_path / "b", continue_from=pointer).start(small_model()).start_epoch == 3
    assert train(tmp_path / "a", 3, continue_from=pointer)[3] == 3
    assert Checkpointer(tmp_path / "a").read(3).manifest.parent.epoch == 2  # type: ignore[union-attr]


def test_an_epoch_of_this_directory_that_is_not_there_falls_back(tmp_path: Path) -> None:
    """By its place as by its number."""
    train(tmp_path, 3)
    start = Checkpointer(tmp_path, continue_from=tmp_path / "checkpoint=9").start(small_model())
    assert start.start_epoch == 4


BAD: dict[str, tuple[Callable[[Path], Any], type[ImuckptError], str]] = {
    "nothing": (lambda d: d / "a" / "checkpoint=9", CheckpointNotFoundError, "no manifest"),
    "a run directory": (lambda d: d / "a", CheckpointNotFoundError, "checkpoint=<epoch>"),
    "a file": (lambda d: d / "a" / "checkpoint=3" / "manifest.json", ImuckptError, "manifest.json"),
    "a bucket": (lambda d: "memory://none/checkpoint=1", CheckpointNotFoundError, "memory:///none"),
    "a scheme": (lambda d: "hdfs://nobody/checkpoint=1", StorageError, "hdfs"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_checkpoint_is_an_error(tmp_path: Path, what: str) -> None:
    """It says where it looked, and neither begins from scratch nor changes anything."""
    train(tmp_path / "a", 3)
    place, kind, words = BAD[what]
    model = small_model(seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=words):
        Checkpointer(tmp_path / "b", continue_from=place(tmp_path)).start(model)
    assert same_bytes(dict(model.state_dict()), before)
    assert not list(tmp_path.glob("b/checkpoint=*"))


@pytest.mark.parametrize("file", ["manifest.json", "model-*.safetensors", "state-*.json"])
@pytest.mark.parametrize("directory", ["a", "b"])
def test_a_damaged_place_is_an_error(tmp_path: Path, directory: str, file: str) -> None:
    """As an epoch that was asked for by its number; nothing older takes its place."""
    train(tmp_path / "a", 3)
    damaged = next((tmp_path / "a" / "checkpoint=3").glob(file))
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    place = tmp_path / "a" / "checkpoint=3"
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        Checkpointer(tmp_path / directory, continue_from=place).start(small_model())


def test_a_relative_place_is_settled_when_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has another working directory than the driver; the repr tells no password."""
    train(tmp_path / "a", 2)
    monkeypatch.chdir(tmp_path / "a")
    checkpointer = Checkpointer(tmp_path / "b", continue_from="checkpoint=2")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(checkpointer))
    assert copy.continue_from == str(tmp_path / "a" / "checkpoint=2")
    assert copy.start(small_model()).start_epoch == 3
    secret = Checkpointer("a", continue_from="sftp://me:hidden@host/checkpoint=2")
    assert "hidden" not in repr(secret)
    assert "me@host" in repr(secret)


LOSSES = {1: 0.5, 2: 0.25, 3: 0.75, 4: None, 5: 1.0}


def measured(directory: Path) -> Checkpointer:
    """Save epochs with these losses, each with a model of its epoch's number."""
    checkpointer = Checkpointer(directory, blocking=True)
    for epoch, loss in LOSSES.items():
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, epoch)
        metrics = None if loss is None else {"loss": loss}
        checkpointer.checkpoint(epoch, model=model, metrics=metrics)
    return checkpointer


def test_the_best_is_continued_from(tmp_path: Path) -> None:
    """By the metric that is given, or that retention names; a branch begins, as with its number."""
    checkpointer = measured(tmp_path)
    model = nn.Linear(1, 1, bias=False)
    assert checkpointer.start(model, continue_from=Best("loss", "max")).start_epoch == 6
    started = Checkpointer(tmp_path, continue_from=Best("loss", "min")).start(model)
    assert (started.start_epoch, model.weight.item()) == (3, 2.0)
    assert checkpointer.load(model, Best("loss", "max")).weight.item() == 5.0
    with pytest.raises(ValueError, match=r"give Best\(metric, mode\)"):
        Checkpointer(tmp_path, continue_from="best")
    with pytest.raises(ValueError, match=r"give Best\(metric, mode\)"):
        checkpointer.start(model, continue_from="best")
    with pytest.raises(ValueError, match="'min' or 'max'"):
        Best("loss", "most")


def test_a_damaged_best_is_passed_over_for_the_next_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever of it is damaged, with a warning: the best is a rule, as the last is."""
    measured(tmp_path)
    choice = Best("loss", "min")
    for epoch, file, left in ((2, "model-*.safetensors", 1.0), (1, "manifest.json", 3.0)):
        next((tmp_path / f"checkpoint={epoch}").glob(file)).write_bytes(b"{}")
        model = nn.Linear(1, 1, bias=False)
        Checkpointer(tmp_path, continue_from=choice).start(model)
        assert model.weight.item() == left
        assert any(
            f"checkpoint={epoch}" in record.message and record.levelno == logging.WARNING
            for record in caplog.records
        )
        caplog.clear()


def test_without_a_number_nothing_is_the_best(tmp_path: Path) -> None:
    """An empty directory is a beginning; one in which nothing has that metric is an error."""
    choice = Best("accuracy", "max")
    model = nn.Linear(1, 1, bias=False)
    assert Checkpointer(tmp_path / "empty", continue_from=choice).start(model).start_epoch == 1
    measured(tmp_path / "run")
    with pytest.raises(CheckpointNotFoundError, match="'accuracy'"):
        Checkpointer(tmp_path / "run", continue_from=choice).start(model)


def test_an_optimizer_comes_from_another_run_as_it_was(tmp_path: Path) -> None:
    """Unlike a donor of Ray Tune's, whose options give way to those of the trial."""
    train(tmp_path / "a", 4)
    model = small_model()
    optimizer = adamw(model)
    optimizer.param_groups[0]["lr"] = 5.0
    place = tmp_path / "a" / "checkpoint=4"
    Checkpointer(tmp_path / "b").start(model, optimizer, continue_from=place)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)
    assert torch.is_tensor(next(iter(optimizer.state.values()))["exp_avg"])
