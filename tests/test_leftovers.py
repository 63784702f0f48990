"""What saves that did not end have left behind goes after a day, is told, and nothing else goes."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conditional_store import Contents
from conftest import train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.repository import leftovers
from ray_imuckpt.storage import Entry, open_storage
from ray_imuckpt.storage.local import LocalStorage

DAY = 24 * 60 * 60
LEFT = [
    "checkpoint=2/model-00000000000000aa.safetensors",
    "checkpoint=2/.manifest.json.0123abcd.tmp",
    "checkpoint=9/state-00000000000000aa.json",
    ".lineage.json.0123abcd.tmp",
    ".probe.0123abcd.tmp",
]
FOREIGN = [
    "checkpoint=2/notes.txt",
    "checkpoint=9x/model-00000000000000aa.safetensors",
    "model-00000000000000aa.safetensors",
    "plots/.probe.0123abcd.tmp",
    "checkpoint=2/model.tmp",
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints, leftovers, and what is not ours; on a disk whose clock is a day on."""
    train(tmp_path, 3)
    for name in [*LEFT, *FOREIGN]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    at_clock(monkeypatch, DAY + 60)
    return tmp_path


def at_clock(monkeypatch: pytest.MonkeyPatch, later: float) -> None:
    """Let the disk's clock be later than when everything was written."""
    real = LocalStorage.clock
    monkeypatch.setattr(LocalStorage, "clock", lambda self: real(self) + later)


def names(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_leftovers_of_more_than_a_day_go_with_a_prune(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a directory that has nothing else; they are told."""
    before = names(directory)
    with caplog.at_level(logging.INFO):
        assert Checkpointer(directory).prune(keep_last=10) == []
    assert names(directory) == before - set(LEFT)
    assert not (directory / "checkpoint=9").exists()
    assert "5 leftover file(s) of saves that did not end, 25 B removed" in caplog.text
    for epoch in (1, 2, 3):
        Checkpointer(directory).verify(epoch)


def test_what_is_younger_may_be_of_a_save_in_flight(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the storage's clock, whatever this machine's says."""
    monkeypatch.undo()
    before = names(directory)
    monkeypatch.setattr("time.time", lambda: 1e12)
    Checkpointer(directory).prune(keep_last=10)
    assert names(directory) == before


def test_a_file_that_was_linked_right_now_is_young(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen parameters are links to a file that may be years old."""
    monkeypatch.undo()
    old = directory / "checkpoint=1" / "model_frozen-00000000000000bb.safetensors"
    old.write_bytes(b"1")
    os.utime(old, (0, 0))
    os.link(old, directory / "checkpoint=9" / old.name)
    Checkpointer(directory).prune(keep_last=10)
    assert (directory / "checkpoint=9" / old.name).exists()


def test_a_dry_run_tells_and_removes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line; the clock is this machine's, since nothing is written."""
    before = names(directory)
    monkeypatch.setattr(
        "ray_imuckpt.repository.leftovers.time.time", lambda: os.stat(directory).st_mtime + 1e6
    )
    assert main(["prune", str(directory), "--keep-last", "10", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would delete 5 leftover files of saves that did not end, 25 B" in told
    assert names(directory) == before
    assert main(["prune", str(directory), "--keep-last", "10"]) == 0
    assert "deleted 5 leftover files" in capsys.readouterr().out
    assert names(directory) == before - set(LEFT)


def test_files_that_a_manifest_comes_to_name_meanwhile_stay(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that comes late is whole."""
    train_elsewhere = directory / "other"
    train(train_elsewhere, 9)
    source = train_elsewhere / "checkpoint=9"
    (directory / LEFT[2]).unlink()
    manifest = (source / "manifest.json").read_bytes()
    for file in source.iterdir():
        if file.name != "manifest.json":
            file.rename(directory / "checkpoint=9" / file.name)
    real = LocalStorage.clock

    def clock(self: LocalStorage) -> float:
        (directory / "checkpoint=9" / "manifest.json").write_bytes(manifest)
        return real(self)

    monkeypatch.setattr(LocalStorage, "clock", clock)
    leftovers.sweep(LocalStorage(str(directory)), dry_run=False)
    Checkpointer(directory).verify(9)


def test_a_damaged_manifest_leaves_its_directory_alone(directory: Path) -> None:
    """Which of its files are whose cannot be told."""
    (directory / "checkpoint=2" / "manifest.json").write_bytes(b"")
    Checkpointer(directory).prune(keep_last=10)
    assert LEFT[0] in names(directory)
    assert LEFT[2] not in names(directory)


def test_a_store_is_swept_with_its_unfinished_uploads() -> None:
    """Of this directory's own files; by the store's own times."""
    contents = Contents()
    options: dict[str, Any] = {"storage_options": {"contents": contents}}
    checkpointer = Checkpointer("conditional://bucket/run", blocking=True, **options)
    checkpointer.start(nn.Linear(2, 2))
    checkpointer.checkpoint(1, model=nn.Linear(2, 2))
    key = f"bucket/run/{LEFT[2]}"
    contents.objects[key] = (b"1", "", contents.now)
    contents.uploads["1"] = (key, contents.now)
    contents.uploads["2"] = ("bucket/run/plot.png", contents.now)
    contents.now += DAY - 60
    checkpointer.prune(keep_last=1)
    assert key in contents.objects
    contents.now += 120
    checkpointer.prune(keep_last=1)
    assert key not in contents.objects
    assert list(contents.uploads) == ["2"]
    checkpointer.verify(1)


def test_a_storage_that_does_not_tell_times_is_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is guessed."""
    real = LocalStorage.entries
    blind = [Entry(e.name, e.size, None) for e in real(LocalStorage(str(directory)))]
    monkeypatch.setattr(LocalStorage, "entries", lambda _: blind)
    before = names(directory)
    assert leftovers.sweep(open_storage(str(directory)), dry_run=False) == leftovers.Leftovers()
    assert names(directory) == before
