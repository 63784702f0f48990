"""A second run in one directory is noticed, and never mixes with the first; no clock is asked."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conditional_store import Contents
from conftest import in_a_child, python_path, small_model
from ray_imuckpt import Checkpointer, SaveFailedError
from ray_imuckpt.saving import commit
from ray_imuckpt.storage import open_storage
from ray_imuckpt.storage.local import LocalStorage

OTHER = """
import sys
from torch import nn
from ray_imuckpt import Checkpointer
kept = Checkpointer(sys.argv[1], blocking=True)
kept.start(nn.Linear(2, 2))
print("started", flush=True)
sys.stdin.read()
"""


def began(directory: Any, **options: Any) -> Checkpointer:
    """A run that has started and saved nothing."""
    checkpointer = Checkpointer(directory, blocking=True, **options)
    checkpointer.start(nn.Linear(2, 2))
    return checkpointer


def save(checkpointer: Checkpointer, epoch: int) -> None:
    checkpointer.checkpoint(epoch, model=nn.Linear(2, 2))


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A process that has started a run in the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": python_path(), "PATH": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        yield process
        process.kill()


def test_a_second_process_is_told_at_start(
    tmp_path: Path, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By name; and not once the other has died, however it died."""
    with caplog.at_level(logging.WARNING):
        began(tmp_path)
    assert f"process {other.pid} on" in caplog.text
    other.kill()
    other.wait()
    caplog.clear()
    began(tmp_path)
    assert caplog.text == ""


def test_one_process_is_no_second_run_to_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cell that is run again, and a child that was forked and lives on."""
    first = began(tmp_path)
    began(tmp_path)
    assert caplog.text == ""
    claim = LocalStorage(str(tmp_path)).claim(b"")
    assert claim.held
    assert in_a_child(lambda: not claim.held)
    assert claim.held
    del first


def test_a_claim_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a child that was forked take away the one of its parent."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    claim = LocalStorage(str(tmp_path / "run")).claim(b"")
    assert in_a_child(lambda: gc.collect() >= 0)
    assert len(list(tmp_path.glob("imuckpt-run-*"))) == 1
    del claim
    gc.collect()
    assert list(tmp_path.glob("imuckpt-run-*")) == []


@pytest.mark.parametrize("place", ["local", "store"])
def test_a_first_save_over_newer_work_of_another_run_is_refused(tmp_path: Path, place: str) -> None:
    """Whoever comes second is told, and the first one goes on."""
    url = str(tmp_path) if place == "local" else "conditional://bucket/run"
    options: dict[str, Any] = {}
    if place == "store":
        options = {"storage_options": {"contents": Contents()}}
    first, second = began(url, **options), began(url, **options)
    save(first, 1)
    with pytest.raises(SaveFailedError, match="has saved epoch 1 here|has begun to save") as caught:
        save(second, 1)
    assert first._training.run is not None
    assert first._training.run.id in str(caught.value)
    save(first, 2)
    assert Checkpointer(url, **options).list_existing_checkpoint_indices() == [1, 2]


def test_a_run_that_goes_on_beside_a_newer_one_is_refused(tmp_path: Path) -> None:
    """The newer one began from what was there; the older one's next save is an error."""
    first = began(tmp_path)
    save(first, 1)
    second = began(tmp_path)
    save(second, 2)
    with pytest.raises(SaveFailedError, match="has begun to save here"):
        save(first, 2)
    assert first._training.run is not None
    save(second, 3)
    manifests = [Checkpointer(tmp_path).read(epoch).manifest for epoch in (1, 2, 3)]
    assert manifests[0].run_id == first._training.run.id
    assert manifests[1].run_id == manifests[2].run_id != manifests[0].run_id


def test_a_run_that_died_does_not_hide_one_that_has_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is of the dead one; the other has saved an epoch again that was there before."""
    save(began(tmp_path), 1)
    older = began(tmp_path)
    save(older, 2)
    save(began(tmp_path, continue_from="none"), 1)
    dead = began(tmp_path)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit, "_put_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            save(dead, 2)
    with pytest.raises(SaveFailedError, match="has begun to save here"):
        save(older, 3)


def test_a_run_that_was_refused_goes_on_after_another_start(tmp_path: Path) -> None:
    """As its error says."""
    first, second = began(tmp_path), began(tmp_path)
    save(first, 1)
    with pytest.raises(SaveFailedError, match=r"call start\(\) again"):
        save(second, 1)
    assert second.start(nn.Linear(2, 2)).start_epoch == 2
    save(second, 2)
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 2


def began_again(directory: Any, first: Checkpointer) -> Checkpointer:
    """Another start of the same run, as Ray or torchrun names it."""
    again = began(directory)
    assert first._training.run is not None
    assert again._training.run is not None
    again._training.run.id = first._training.run.id
    return again


def test_a_restart_of_the_same_run_is_no_second_one(tmp_path: Path) -> None:
    """What the attempt before has committed meanwhile is this run's own."""
    first = began(tmp_path)
    second = began_again(tmp_path, first)
    save(first, 1)
    save(second, 1)
    Checkpointer(tmp_path).verify(1)


def test_a_process_whose_run_was_started_again_elsewhere_is_refused(tmp_path: Path) -> None:
    """It hung, or was cut off, and wakes: what the run has saved since stays "the last"."""
    saved = began(tmp_path)
    unsaved = began_again(tmp_path, saved)
    save(saved, 1)
    goes_on = began_again(tmp_path, saved)
    save(goes_on, 2)
    save(goes_on, 3)
    for woken, told in ((saved, "has begun to save here"), (unsaved, "has saved epoch 3 here")):
        with pytest.raises(SaveFailedError, match=f"{told} since this start of it"):
            save(woken, 2)
    save(goes_on, 4)
    reader = Checkpointer(tmp_path)
    assert reader.list_existing_checkpoint_indices() == [1, 2, 3, 4]
    assert reader.index_of_last_checkpoint_prior_to(4) == 3


def test_a_commit_during_which_another_run_begins_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, but never "the last": the other run did not come from it."""
    first = began(tmp_path)
    save(first, 3)
    real = LocalStorage.put_if

    def meanwhile(self: LocalStorage, name: str, data: bytes, seen: bytes | None) -> bool:
        if name == "checkpoint=9/manifest.json":
            monkeypatch.undo()
            save(began(tmp_path), 4)
        return real(self, name, data, seen)

    monkeypatch.setattr(LocalStorage, "put_if", meanwhile)
    with pytest.raises(SaveFailedError, match="committed, but counts as left behind"):
        save(first, 9)
    reader = Checkpointer(tmp_path)
    assert reader.list_existing_checkpoint_indices() == [3, 4, 9]
    assert reader.index_of_last_checkpoint() == 4
    assert reader.start(nn.Linear(2, 2)).start_epoch == 5


def test_a_record_that_is_lost_during_a_run_is_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing, cut, or an older one put in its place: that is no other run."""
    save(began(tmp_path), 2)
    record = tmp_path / "lineage.json"
    older = record.read_bytes()
    run = began(tmp_path)
    for epoch, found in enumerate((None, b"", older), start=3):
        save(run, epoch)
        record.unlink() if found is None else record.write_bytes(found)
        caplog.clear()
        save(run, epoch)
        assert "written anew" in caplog.text
        caplog.clear()
        assert Checkpointer(tmp_path).index_of_last_checkpoint() == epoch
        assert caplog.text == ""


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_manifest_that_is_sent_again_does_not_replace_a_newer_commit(late: bool) -> None:
    """The store did the work and lost the answer; its client puts again, after another save."""
    contents = Contents()
    options: dict[str, Any] = {"storage_options": {"contents": contents}}
    url = "conditional://bucket/run"
    first = Checkpointer(url, blocking=True, **options)
    first.start(nn.Linear(2, 2))
    storage: Any = open_storage(url, {"contents": contents})
    filesystem: Any = type(storage._engine.engine.filesystem)
    real = filesystem.pipe_file

    def twice(self: Any, path: str, value: bytes, mode: str = "", **condition: Any) -> None:
        condition["mode"] = mode
        real(self, path, value, **condition)
        if path.endswith("manifest.json"):
            filesystem.pipe_file = real
            if late:  # a later save of the same run, by the attempt after this one
                again = Checkpointer(url, blocking=True, **options)
                again.start(nn.Linear(2, 2))
                assert again._training.run is not None
                assert first._training.run is not None
                again._training.run.id = first._training.run.id
                save(again, 1)
            real(self, path, value, **condition)

    filesystem.pipe_file = twice
    try:
        if late:
            with pytest.raises(SaveFailedError):
                save(first, 1)
        else:
            save(first, 1)
    finally:
        filesystem.pipe_file = real
    reader = Checkpointer(url, **options)
    assert reader.list_existing_checkpoint_indices() == [1]
    reader.verify(1)


def test_what_a_store_without_conditions_may_bring_back_is_whole() -> None:
    """The files of a manifest that was replaced stay: a late put of it may still arrive."""
    contents = Contents(heeds=False)
    options: dict[str, Any] = {"storage_options": {"contents": contents}}
    checkpointer = Checkpointer("conditional://bucket/run", blocking=True, **options)
    checkpointer.start(small_model())
    save(checkpointer, 1)
    key = "bucket/run/checkpoint=1/manifest.json"
    old = contents.data(key)
    save(checkpointer, 1)
    contents.objects[key] = (old, "", 0.0)
    Checkpointer("conditional://bucket/run", **options).verify(1)
