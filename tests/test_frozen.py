"""Frozen parameters are sent once, and what rots is not passed on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.storage.local import LocalStorage


def test_frozen_parameters_are_not_written_again(tmp_path: Path) -> None:
    """Promise 8: the same file under each checkpoint's own name, until it changes."""
    model = small_model()
    checkpointer = Checkpointer(tmp_path, blocking=True)
    files = []
    for epoch in (1, 2, 3):
        if epoch == 3:
            model.get_parameter("3.bias").data.add_(1)
        model.get_parameter("0.bias").data.add_(1)
        checkpointer.checkpoint(epoch, model=model)
        files.append(next((tmp_path / f"checkpoint={epoch}").glob("model_frozen-*")))
    inodes = [os.stat(file).st_ino for file in files]
    assert inodes[0] == inodes[1] != inodes[2]
    assert len({file.name for file in files}) == 3
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    assert checkpointer.prune(keep_last=1) == [1, 2]
    checkpointer.verify(3)
    assert same_bytes(dict(checkpointer.load(small_model(4)).state_dict()), expected)


def test_a_frozen_file_that_rotted_is_written_anew_and_not_linked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read before it is linked; the damage is told, and does not spread."""
    model = small_model()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model)
    old = next((tmp_path / "checkpoint=1").glob("model_frozen-*"))
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.start(small_model())
    data = bytearray(old.read_bytes())
    data[-1] ^= 1
    old.write_bytes(data)  # after the start, or that would have found it
    checkpointer.checkpoint(2, model=model)
    checkpointer.verify(2)
    assert old.name in caplog.text
    checkpointer.checkpoint(3, model=model)
    two, three = (
        next((tmp_path / f"checkpoint={epoch}").glob("model_frozen-*")) for epoch in (2, 3)
    )
    assert os.stat(old).st_ino != os.stat(two).st_ino == os.stat(three).st_ino


def test_a_frozen_file_of_another_process_is_read_once_and_then_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums are compared at the first save, and known from then on."""
    model = small_model()
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.start(model)
    read: list[str] = []
    real = LocalStorage.read_into

    def read_into(self: LocalStorage, name: str, *rest: Any) -> None:
        read.append(name)
        real(self, name, *rest)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    for epoch in (2, 3):
        checkpointer.checkpoint(epoch, model=model)
    files = [next((tmp_path / f"checkpoint={epoch}").glob("model_frozen-*")) for epoch in (1, 2, 3)]
    assert len({os.stat(file).st_ino for file in files}) == 1
    assert read == [f"checkpoint=1/{files[0].name}"]


def test_frozen_parameters_are_copied_by_an_object_store_itself(tmp_path: Path) -> None:
    """The copy is whole, also when the epoch it was copied from has been pruned."""
    url = f"memory://{tmp_path.name}"
    model = small_model()
    checkpointer = Checkpointer(url)
    for epoch in (1, 2):
        checkpointer.checkpoint(epoch, model=model)
    assert checkpointer.prune(keep_last=1) == [1]
    checkpointer.verify(2)
