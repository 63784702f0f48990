"""What goes wrong while a save is in flight: nothing is committed that is not whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes
from ray_imuckpt import Checkpointer, SaveFailedError
from ray_imuckpt.encoding import tensors
from ray_imuckpt.encoding.tensors import memory
from ray_imuckpt.storage import posix


def large() -> nn.Module:
    """24 MiB: three chunks and a bit."""
    return nn.Linear(2048, 3073)


def test_a_directory_that_vanishes_fails_the_save_and_the_next_one_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed in the middle of a write, it costs that epoch and no other."""
    run = tmp_path / "run"
    vanished = threading.Event()
    real = posix.pwrite_all

    def pwrite_all(*arguments: Any) -> None:
        real(*arguments)
        if not vanished.is_set() and (run / "checkpoint=2").exists():
            vanished.set()
            shutil.rmtree(run)

    checkpointer = Checkpointer(run)
    model = large()
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    monkeypatch.setattr(posix, "pwrite_all", pwrite_all)
    checkpointer.checkpoint(2, model=model)
    with pytest.raises(SaveFailedError, match="nothing was committed") as caught:
        checkpointer.wait()
    assert caught.value.epoch == 2
    assert checkpointer.list_existing_checkpoint_indices() == []
    checkpointer.checkpoint(3, model=model)
    checkpointer.wait()
    checkpointer.verify(3)
    assert checkpointer.list_existing_checkpoint_indices() == [3]


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_a_writer_that_raises_in_mid_file_leaves_no_file_and_the_old_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Whichever chunk fails, nothing of the save is left, and the epoch before is untouched."""
    checkpointer = Checkpointer(tmp_path)
    model = large()
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    before = sorted(os.listdir(tmp_path / "checkpoint=1"))
    real = posix.pwrite_all

    def pwrite_all(descriptor: int, views: Any, offset: int) -> None:
        if offset == chunk * 8 * 1024 * 1024:
            raise OSError(5, "the disk gave up")
        real(descriptor, views, offset)

    monkeypatch.setattr(posix, "pwrite_all", pwrite_all)
    checkpointer.checkpoint(1, model=large())
    with pytest.raises(SaveFailedError, match="the disk gave up"):
        checkpointer.wait()
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "checkpoint=1")) == before
    assert same_bytes(dict(checkpointer.load(large(), 1).state_dict()), dict(model.state_dict()))


def test_a_disk_that_is_full_fails_the_save_and_training_goes_on(tmp_path: Path) -> None:
    """A real limit of the operating system, met in the middle of a run, and lifted again."""
    script = """if True:
        import resource, sys
        from pathlib import Path
        from torch import nn
        from ray_imuckpt import Checkpointer, SaveFailedError
        checkpointer = Checkpointer(sys.argv[1])
        model = nn.Linear(1000, 1000)
        checkpointer.checkpoint(1, model=model)
        checkpointer.wait()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        checkpointer.checkpoint(2, model=model)
        try:
            checkpointer.checkpoint(3, model=model)
            checkpointer.wait()
        except SaveFailedError as error:
            print("failed", error.epoch)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        checkpointer.checkpoint(4, model=model)
        checkpointer.wait()
        print(checkpointer.list_existing_checkpoint_indices())
    """
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\n")[:2] == ["failed 2", "[1, 4]"], told.stdout + told.stderr
    assert not list(tmp_path.glob("checkpoint=2/*"))
    for epoch in (1, 4):
        Checkpointer(tmp_path).verify(epoch)


def test_blocking_fetches_what_is_on_a_device_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it goes with a GPU, whose memory this stands for; no copy of the whole is ever made."""
    fetched: list[int] = []
    real = memory.FetchedBytes.__getitem__

    def getitem(self: Any, piece: slice) -> memoryview:
        view = real(self, piece)
        fetched.append(len(view))
        return view

    def byte_view(tensor: torch.Tensor) -> memory.Bytes:
        return memory.FetchedBytes(tensor)

    model = large()
    optimizer = adamw(model)
    Checkpointer(tmp_path / "host", blocking=True).checkpoint(1, model=model, optimizer=optimizer)
    monkeypatch.setattr(memory.FetchedBytes, "__getitem__", getitem)
    monkeypatch.setattr(tensors.format, "byte_view", byte_view)
    checkpointer = Checkpointer(tmp_path / "device", blocking=True)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    (here,) = (tmp_path / "host").glob("checkpoint=1/model-*")
    (there,) = (tmp_path / "device").glob("checkpoint=1/model-*")
    assert here.read_bytes() == there.read_bytes()
    assert sum(fetched) >= sum(p.nbytes for p in model.parameters())
    assert max(fetched) <= 8 * 1024 * 1024
