"""A record of abandoned branches that cannot be written, is damaged, or meets a newer format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small_model, train
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    SaveFailedError,
    UnsupportedStateError,
)
from ray_imuckpt.cli import main
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.records import seal
from ray_imuckpt.storage import ConflictError
from ray_imuckpt.storage.local import LocalStorage


def make_newer(directory: Path, epoch: int) -> None:
    """Give a manifest the format of a later release."""
    file = directory / f"checkpoint={epoch}" / "manifest.json"
    fields = json.loads(file.read_bytes())
    del fields["checksum"]
    file.write_bytes(seal({**fields, "format": 2}))


def live(directory: Path) -> list[int]:
    return sorted(Catalog(LocalStorage(str(directory))).current_branch())


def failing(name: str, error: Exception, *, lost: bool = False) -> Any:
    """`LocalStorage.put_if` that fails for one file name; with `lost`, after it did the work."""
    put = LocalStorage.put_if

    def fail(self: LocalStorage, path: str, data: bytes, seen: bytes | None) -> bool:
        if not path.endswith(name):
            return put(self, path, data, seen)
        if lost:
            put(self, path, data, seen)
        raise error

    return fail


@pytest.mark.parametrize("before", [False, True], ids=["one branch", "two branches"])
def test_a_first_save_that_fails_leaves_nothing_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    """The record of branches is put back as it was."""
    train(tmp_path, 6)
    if before:
        train(tmp_path, 5, continue_from=4)
    record = tmp_path / "lineage.json"
    told, was = record.read_bytes(), live(tmp_path)
    checkpointer = Checkpointer(tmp_path, continue_from=2, blocking=True)
    model = small_model()
    checkpointer.start(model)
    with monkeypatch.context() as patch:
        fault = failing("manifest.json", OSError(28, "No space left"))
        patch.setattr(LocalStorage, "put_if", fault)
        with pytest.raises(SaveFailedError, match="No space left"):
            checkpointer.checkpoint(3, model=model)
    assert record.read_bytes() == told
    assert live(tmp_path) == was
    checkpointer.checkpoint(3, model=model)
    assert live(tmp_path) == [1, 2, 3], "the branch begins with the save that succeeds"


def test_a_first_save_that_may_be_committed_keeps_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell, the branch that may have begun is the current one."""
    train(tmp_path, 6)
    checkpointer = Checkpointer(tmp_path, continue_from=2, blocking=True)
    model = small_model()
    checkpointer.start(model)
    get = LocalStorage.get

    def unreachable(self: LocalStorage, path: str) -> bytes:
        if path == "checkpoint=3/manifest.json" and b"committed" in lost:
            raise OSError("unreachable")
        return get(self, path)

    lost: list[bytes] = []
    put = failing("manifest.json", OSError("timed out"), lost=True)

    def put_and_lose(self: LocalStorage, path: str, data: bytes, seen: bytes | None) -> bool:
        try:
            return put(self, path, data, seen)
        except ConflictError:  # there is an epoch 3 to replace
            raise
        except OSError:
            lost.append(b"committed")
            raise

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put_if", put_and_lose)
        patch.setattr(LocalStorage, "get", unreachable)
        with pytest.raises(SaveFailedError, match="may be committed or not") as caught:
            checkpointer.checkpoint(3, model=model)
    assert "imuckpt ls" in str(caught.value)
    assert "nothing was committed" not in str(caught.value)
    assert caught.value.epoch == 3
    assert str(tmp_path / "checkpoint=3") in str(caught.value)
    assert live(tmp_path) == [1, 2, 3]
    Checkpointer(tmp_path).verify(3)
    checkpointer.checkpoint(4, model=model)
    assert live(tmp_path) == [1, 2, 3, 4], "what this run may have saved is not left behind"


def test_a_record_that_cannot_be_written_is_a_save_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With epoch and URL; what was there before is live as before."""
    train(tmp_path, 3)
    told = (tmp_path / "lineage.json").read_bytes()
    checkpointer = Checkpointer(tmp_path, continue_from=1, blocking=True)
    model = small_model()
    checkpointer.start(model)
    fault = failing("lineage.json", OSError("read-only"), lost=True)
    monkeypatch.setattr(LocalStorage, "put_if", fault)
    with pytest.raises(SaveFailedError, match="read-only") as caught:
        checkpointer.checkpoint(2, model=model)
    assert caught.value.epoch == 2
    assert caught.value.url == str(tmp_path / "checkpoint=2")
    assert (tmp_path / "lineage.json").read_bytes() == told, "it had arrived all the same"
    assert live(tmp_path) == [1, 2, 3]


def test_a_state_that_is_refused_abandons_nothing(tmp_path: Path) -> None:
    """Safetensors has a use of its own for this name."""
    train(tmp_path, 3)
    told = (tmp_path / "lineage.json").read_bytes()
    checkpointer = Checkpointer(tmp_path, continue_from=1, blocking=True)
    checkpointer.start(small_model())
    model = small_model()
    model.register_parameter("__metadata__", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(UnsupportedStateError, match="__metadata__"):
        checkpointer.checkpoint(2, model=model)
    assert (tmp_path / "lineage.json").read_bytes() == told
    assert live(tmp_path) == [1, 2, 3]


def test_a_checkpoint_of_a_newer_format_can_be_left_behind(tmp_path: Path) -> None:
    """It is recorded with the ids that it states, so that it stays so where it can be read."""
    train(tmp_path, 4)
    original = (tmp_path / "checkpoint=4" / "manifest.json").read_bytes()
    make_newer(tmp_path, 4)
    train(tmp_path, 3, continue_from=2)
    assert live(tmp_path) == [1, 2, 3]
    assert train(tmp_path, 3)[3] == 4, "nothing is in the way of the next start"
    (tmp_path / "checkpoint=4" / "manifest.json").write_bytes(original)
    assert live(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("cut", [0, 20, -9])
def test_a_damaged_record_is_made_again_from_the_manifests(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it was cut; it is told, and looking alone writes nothing."""
    train(tmp_path, 3)
    train(tmp_path, 2, continue_from=1)
    record = tmp_path / "lineage.json"
    sound = record.read_bytes()
    record.write_bytes(sound[:cut])
    damaged = record.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert live(tmp_path) == [1, 2]
    assert str(record) in caplog.text
    assert "epoch 2" in caplog.text
    assert "[3] are abandoned" in caplog.text
    assert main(["ls", str(tmp_path)]) == 0
    assert record.read_bytes() == damaged, "looking writes nothing"
    assert train(tmp_path, 3)[3] == 3
    assert live(tmp_path) == [1, 2, 3]
    train(tmp_path, 2, continue_from=1)
    assert live(tmp_path) == [1, 2]
    caplog.clear()
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 2
    assert caplog.text == "", "the first save wrote the record anew"


def test_a_damaged_record_beside_a_newer_format_is_an_error_whose_hint_works(
    tmp_path: Path,
) -> None:
    """What cannot be rebuilt must be chosen, and choosing it goes on."""
    train(tmp_path, 4)
    train(tmp_path, 3, continue_from=2)
    (tmp_path / "lineage.json").write_bytes(b"")
    make_newer(tmp_path, 4)
    with pytest.raises(CorruptCheckpointError, match="lineage.json") as caught:
        Checkpointer(tmp_path).start(small_model())
    assert "continue_from=<epoch>" in str(caught.value)
    assert train(tmp_path, 4, continue_from=3)[3] == 4
    assert live(tmp_path) == [1, 2, 3, 4]
