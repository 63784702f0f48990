"""Promises 1 and 2: a save that fails, is killed, or meets another, loses nothing committed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small_model
from ray_imuckpt import Checkpointer, SaveFailedError
from support.waiting import until_committed


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync", "link", "open", "mkdir"])
def test_an_error_of_the_operating_system_is_a_failed_save_that_leaves_nothing(
    trained: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk, for one: the error says where, and the directory is as it was."""
    directory = trained(2)
    before = sorted(directory.rglob("*"))
    checkpointer = Checkpointer(directory, blocking=True)
    real = getattr(os, call)

    def full(*arguments: Any, **keywords: Any) -> Any:
        if call == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **keywords)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(SaveFailedError, match="No space left") as caught:
        checkpointer.checkpoint(3, model=small_model())
    monkeypatch.undo()
    assert caught.value.epoch == 3
    assert "checkpoint=3" in str(caught.value)
    assert sorted(directory.rglob("*")) == before
    checkpointer.checkpoint(3, model=small_model())
    checkpointer.verify(3)


def test_a_storage_that_loses_a_file_does_not_commit(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are asked of the storage before the manifest is written."""
    from ray_imuckpt.storage.local import LocalStorage

    directory = trained(1)
    real = LocalStorage.write

    def lossy(self: LocalStorage, name: str, *rest: Any) -> None:
        real(self, name, *rest)
        if name.endswith(".json"):
            os.truncate(os.path.join(self.url, name), 3)

    monkeypatch.setattr(LocalStorage, "write", lossy)
    with pytest.raises(SaveFailedError, match="does not hold"):
        Checkpointer(directory, blocking=True).checkpoint(2, model=small_model())
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [1]


def test_a_failed_save_leaves_what_is_not_ours(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own file in the checkpoint directory stays."""
    directory = trained(1)
    plot = directory / "checkpoint=2" / "plots" / "a.png"
    plot.parent.mkdir(parents=True)
    plot.write_bytes(b"mine")

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SaveFailedError):
        Checkpointer(directory, blocking=True).checkpoint(2, model=small_model())
    assert plot.read_bytes() == b"mine"


def test_two_writers_of_one_epoch_leave_a_whole_checkpoint(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie commits after the restarted gang has: whichever is last is whole."""
    from ray_imuckpt.saving.files import Files

    directory = trained(1)
    real = Files.check_complete

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.setattr(Files, "check_complete", real)
        Checkpointer(directory, blocking=True).checkpoint(2, model=small_model())

    monkeypatch.setattr(Files, "check_complete", meanwhile)
    Checkpointer(directory, blocking=True).checkpoint(2, model=small_model(3))
    Checkpointer(directory).verify(2)


@pytest.mark.parametrize("answer", ["lost", "unknown"])
def test_a_store_that_loses_its_answer_to_the_commit(
    trained: Any, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """The manifest arrived, the store said no: the files that it names must stay."""
    from ray_imuckpt.storage.local import LocalStorage

    directory = trained(1)
    real_put, real_get = LocalStorage.put_if, LocalStorage.get
    sent: list[str] = []

    def put(self: LocalStorage, name: str, data: bytes, seen: bytes | None) -> bool:
        sure = real_put(self, name, data, seen)
        if name.endswith("manifest.json"):
            sent.append(name)
            raise TimeoutError("no answer")
        return sure

    def get(self: LocalStorage, name: str) -> bytes:
        if answer == "unknown" and name in sent:
            raise TimeoutError("no answer")
        return real_get(self, name)

    monkeypatch.setattr(LocalStorage, "put_if", put)
    monkeypatch.setattr(LocalStorage, "get", get)
    checkpointer = Checkpointer(directory, blocking=True)
    if answer == "lost":
        checkpointer.checkpoint(2, model=small_model())
    else:
        with pytest.raises(SaveFailedError, match="cannot be told"):
            checkpointer.checkpoint(2, model=small_model())
    monkeypatch.undo()
    Checkpointer(directory).verify(2)


def test_a_process_killed_while_it_saves(tmp_path: Path) -> None:
    """The real thing: SIGKILL at random moments; what is listed is whole, and training goes on."""
    import random
    import signal
    import subprocess
    import sys
    import time

    script = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from ray_imuckpt import Checkpointer\n"
        "torch.set_num_threads(1)\n"
        "model = nn.Linear(600, 600)\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "checkpointer = Checkpointer(sys.argv[1])\n"
        "_, _, log, first, _ = checkpointer.start(model, optimizer)\n"
        "print('started', first, flush=True)\n"
        "for epoch in range(first, 100000):\n"
        "    model(torch.randn(2, 600)).sum().backward()\n"
        "    optimizer.step()\n"
        "    log.append(epoch)\n"
        "    checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log)\n"
    )
    moment = random.Random(0)
    reached = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"started {reached + 1}\n"
        until_committed(tmp_path, reached + 1)
        time.sleep(0.2 * moment.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        checkpointer = Checkpointer(tmp_path)
        found = checkpointer.list_existing_checkpoint_indices()
        assert found == list(range(1, len(found) + 1))
        assert len(found) > reached
        reached = found[-1]
        checkpointer.verify(reached)
        assert checkpointer.read(reached).log == list(range(1, reached + 1))
    assert torch.isfinite(checkpointer.read(reached).model["weight"]).all()
