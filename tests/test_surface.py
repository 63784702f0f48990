"""The seed's surface, by its names: start, checkpoint, load and the index helpers."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential


def test_from_scratch_gives_back_what_was_given(tmp_path: Path) -> None:
    """Nothing is touched, and nothing is written."""
    model = small_model()
    optimizer = adamw(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    started = Checkpointer(tmp_path).start(model, optimizer, note="a")
    assert started.model is model
    assert started.optimizer is optimizer
    assert (started.log, started.start_epoch, started.other) == ([], 1, {"note": "a"})
    assert same_bytes(dict(model.state_dict()), before)
    assert not list(tmp_path.iterdir()), "start() alone writes nothing"


@pytest.mark.parametrize("word", ["last", "latest", "recent"])
def test_last_and_its_synonyms(trained: Any, word: str) -> None:
    """Each of the words means the newest checkpoint."""
    directory = trained(3)
    started = Checkpointer(directory, continue_from=word).start(small_model())
    assert started.start_epoch == 4
    assert [entry["epoch"] for entry in started.log] == [1, 2, 3]


@pytest.mark.parametrize("word", ["none", "start", "restart", "nothing", None])
def test_none_and_its_synonyms(trained: Any, word: str | None) -> None:
    """Each of the words means to begin anew."""
    directory = trained(3)
    assert Checkpointer(directory).start(small_model(), continue_from=word).start_epoch == 1


def test_an_epoch_that_exists(trained: Any) -> None:
    """Training goes on with the one after it."""
    assert Checkpointer(trained(3), continue_from=2).start(small_model()).start_epoch == 3


def test_an_epoch_that_does_not_exist_falls_back_with_a_warning(
    trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last one before it, never to one after it."""
    directory = trained(7, save_every=3)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        assert Checkpointer(directory).start(small_model(), continue_from=5).start_epoch == 4
    assert "no checkpoint of epoch 5" in caplog.text


def test_an_epoch_with_nothing_before_it_begins_from_scratch(
    trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, since that is not what was asked for."""
    directory = trained(7, save_every=3)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        started = Checkpointer(directory).start(small_model(), continue_from=2)
    assert started.start_epoch == 1
    assert "scratch" in caplog.text


def test_resuming_continues_the_same_run(tmp_path: Path) -> None:
    """Promise 5: interrupted or not, the same bytes."""
    whole_model, whole_optimizer, whole_log, _ = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 2)
    train(tmp_path / "parts", 5)
    model, optimizer, log, first = train(tmp_path / "parts", 6)
    assert first == 6
    assert log == whole_log
    assert same_bytes(dict(model.state_dict()), dict(whole_model.state_dict()))
    assert same_bytes(optimizer.state_dict(), whole_optimizer.state_dict())


def test_save_every_saves_multiples_and_force_saves_the_rest(tmp_path: Path) -> None:
    """The number of an epoch decides, and the user may overrule it."""
    model = small_model()
    checkpointer = Checkpointer(tmp_path, save_every=5)
    saved = [checkpointer.checkpoint(epoch, model=model) is not None for epoch in range(1, 12)]
    assert checkpointer.list_existing_checkpoint_indices() == [5, 10]
    assert [i for i, s in enumerate(saved, 1) if s] == [5, 10]
    pending = checkpointer.checkpoint(12, model=model, force=True)
    assert pending is not None
    pending.wait()
    assert pending.done()
    assert checkpointer.index_of_last_checkpoint() == 12


def test_index_helpers(tmp_path: Path) -> None:
    """They count committed checkpoints by number, not by age or name."""
    checkpointer = Checkpointer(tmp_path / "run")
    assert checkpointer.list_existing_checkpoint_indices() == []
    assert checkpointer.index_of_last_checkpoint() is None
    assert checkpointer.index_of_last_checkpoint_prior_to(9) is None
    assert checkpointer.path_to_last_checkpoint() is None
    for epoch in (2, 10, 9):
        checkpointer.checkpoint(epoch, model=small_model())
    assert checkpointer.list_existing_checkpoint_indices() == [2, 9, 10]
    assert checkpointer.index_of_last_checkpoint() == 10
    assert checkpointer.index_of_last_checkpoint_prior_to(10) == 9
    assert checkpointer.index_of_last_checkpoint_prior_to(2) is None
    assert checkpointer.path_to_checkpoint(77) == str(tmp_path / "run" / "checkpoint=77")
    assert checkpointer.path_to_last_checkpoint() == str(tmp_path / "run" / "checkpoint=10")


def test_foreign_names_are_never_taken_for_checkpoints(trained: Any) -> None:
    """Names that merely look alike are left alone."""
    directory = trained(2)
    manifest = (directory / "checkpoint=2" / "manifest.json").read_bytes()
    for name in (
        "checkpoint=7.bak",
        "checkpoint=x",
        "xcheckpoint=7",
        "checkpoint=07",
        "checkpoint=-7",
        "checkpoint=٧",
        "checkpoint_000007",
        "checkpoint=",
        "checkpoint=9007199254740993",  # more than a manifest can state
        f"checkpoint={'9' * 20}",
    ):
        (directory / name).mkdir()
        (directory / name / "manifest.json").write_bytes(manifest)
    (directory / "checkpoint=8").write_text("a file")
    (directory / "checkpoint=9").mkdir()
    (directory / "checkpoint=9" / "model.safetensors").write_text("no manifest")
    (directory / "checkpoint_manager_snapshot.json").write_text("{}")
    checkpointer = Checkpointer(directory)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]
    assert checkpointer.start(small_model()).start_epoch == 3


def test_log_and_other_are_kept_with_every_checkpoint(tmp_path: Path) -> None:
    """Each epoch has its own."""
    checkpointer = Checkpointer(tmp_path)
    model = small_model()
    for epoch in (1, 2):
        checkpointer.checkpoint(
            epoch, model=model, log=[{"epoch": epoch}], note=("a", epoch), table={1: torch.ones(2)}
        )
    for epoch in (1, 2):
        loaded = checkpointer.read(epoch)
        assert loaded.log == [{"epoch": epoch}]
        assert loaded.other["note"] == ("a", epoch)
        assert same_bytes(loaded.other["table"], {1: torch.ones(2)})
    other = checkpointer.start(model, note=None).other
    assert other["note"] == ("a", 2), "a plain value given to start() is only a default"


def test_plateau_detector_in_other_and_another_schedule_after_resuming(tmp_path: Path) -> None:
    """DESIGN section 2: adjust(optimizer, new_schedule) is what changes course after resuming."""
    model = small_model()
    optimizer = adamw(model)
    plateau = PlateauDetector(Exponential(1e-2, 0.5), patience=2)
    checkpointer = Checkpointer(tmp_path)
    for epoch, loss in enumerate([1.0, 1.0, 1.0, 1.0], 1):
        if plateau.step(loss):
            plateau.adjust(optimizer)
        checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, plateau=plateau)
    reached = plateau.learning_rate
    assert reached < 1e-2

    model = small_model()
    optimizer = adamw(model)
    plateau = PlateauDetector(Exponential(1e-2, 0.5), patience=2)
    started = checkpointer.start(model, optimizer, plateau=plateau)
    assert started.other["plateau"] is plateau
    assert plateau.learning_rate == reached
    assert [group["lr"] for group in optimizer.param_groups] == [reached, reached]
    plateau.adjust(optimizer, Exponential(1e-4, 0.1))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-4]

    without = checkpointer.start(small_model()).other["plateau"]
    assert isinstance(without, dict), "not given to start(): its state is in other"


def test_memory_urls(tmp_path: Path) -> None:
    """Any file system of fsspec serves, with the same bytes."""
    url = f"memory://{tmp_path.name}/run"
    whole, _, log, _ = train(tmp_path / "local", 4)
    train(url, 2)
    model, _, resumed_log, first = train(url, 4)
    assert first == 3
    assert resumed_log == log
    assert same_bytes(dict(model.state_dict()), dict(whole.state_dict()))
    checkpointer = Checkpointer(url)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4]
    assert checkpointer.path_to_last_checkpoint() == f"memory:///{tmp_path.name}/run/checkpoint=4"
    fresh = checkpointer.load(small_model(seed=3), checkpointer.path_to_last_checkpoint())
    assert same_bytes(dict(fresh.state_dict()), dict(whole.state_dict()))
    assert checkpointer.read(2).log == log[:2]
    checkpointer.verify(3)
    assert checkpointer.prune(keep_last=1) == [1, 3], "2 was resumed from"
    assert checkpointer.list_existing_checkpoint_indices() == [2, 4]


def test_a_pickled_checkpointer_means_the_same_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has another working directory than the driver."""
    monkeypatch.chdir(tmp_path)
    checkpointer = Checkpointer("runs/a", continue_from=3, save_every=2)
    copy = pickle.loads(pickle.dumps(checkpointer))
    monkeypatch.chdir("/")
    assert copy.path_to_checkpoint(1) == str(tmp_path / "runs" / "a" / "checkpoint=1")
    assert (copy.continue_from, copy.saving) == (3, checkpointer.saving)


def test_default_directory_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script needs no argument at all."""
    monkeypatch.chdir(tmp_path)
    with Checkpointer() as checkpointer:
        monkeypatch.chdir("/")  # as it was when the Checkpointer was made, like any relative path
        checkpointer.checkpoint(1, model=small_model())
    assert (tmp_path / "checkpoint=1" / "manifest.json").is_file()


def test_the_root_of_a_store_is_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a path like any other."""
    path = Checkpointer("memory://").path_to_checkpoint(1)
    assert path.startswith("memory://")
