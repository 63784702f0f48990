"""Promises 1 and 2: a crash at any storage operation loses nothing that was committed.

The sweep runs one save again and again; at the n-th call into the operating system the process
"dies": that call does not happen (or, for a write, happens half), and no later call has any effect
either, so no cleanup runs. What is then on disk must be the old state or the new one, no mixture.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import Checkpointer, SaveFailedError

CALLS = (
    "open",
    "pwrite",
    "posix_fallocate",
    "fsync",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "close",
)


class Died(BaseException):
    """The process was killed here."""


class Machine:
    """Counts the calls into the operating system and dies at the n-th."""

    def __init__(self, at: int) -> None:
        self.at, self.count, self.dead, self.where = at, 0, False, ""

    @contextmanager
    def running(self) -> Iterator[None]:  # noqa: C901 - one machine
        """While this lasts, the calls are counted."""
        real = {name: getattr(os, name) for name in CALLS}

        def counted(name: str) -> Any:
            def call(*arguments: Any, **keywords: Any) -> Any:
                if name == "open" and not arguments[1] & os.O_CREAT:
                    return real[name](*arguments, **keywords)
                if self.dead:
                    if name == "close":  # the kernel closes what a dead process had open
                        return real[name](*arguments)
                    raise Died
                self.count += 1
                if self.count == self.at:
                    self.dead, self.where = True, name
                    if name == "pwrite":
                        descriptor, data, offset = arguments
                        real[name](descriptor, data[: len(data) // 2], offset)
                    raise Died
                return real[name](*arguments, **keywords)

            return call

        for name in CALLS:
            setattr(os, name, counted(name))
        try:
            yield
        except Died:
            pass
        finally:
            for name in CALLS:
                setattr(os, name, real[name])


def state_of(directory: Path, epoch: int) -> dict[str, Any]:
    """All of a checkpoint, copied."""
    loaded = Checkpointer(directory).read(epoch)
    return {
        "model": {n: t.clone() for n, t in loaded.model.items()},
        "optimizer": loaded.optimizer,
        "log": loaded.log,
    }


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    """Runs `save` on copies of a directory, dying at each call."""
    base = tmp_path / "base"
    train(base, 3)

    def run(save: Any) -> Iterator[tuple[Path, bool, str]]:
        for at in range(1, 500):
            directory = tmp_path / "again"
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(base, directory)
            machine = Machine(at)
            with machine.running():
                save(directory)
            yield directory, not machine.dead, machine.where
            if not machine.dead:
                return
        pytest.fail("the save never ended")

    return base, run


def _save(directory: Path, epoch: int, continue_from: Any = "last") -> None:
    model = small_model(seed=11)
    optimizer = adamw(model)
    checkpointer = Checkpointer(directory, continue_from=continue_from, blocking=True)
    resumed = small_model(seed=12)
    checkpointer.start(resumed, adamw(resumed))
    checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=["new"])


def test_a_new_epoch_is_there_or_not(sweep: Any) -> None:
    base, run = sweep
    old = {epoch: state_of(base, epoch) for epoch in (1, 2, 3)}
    seen: set[tuple[str, bool]] = set()
    for directory, survived, where in run(lambda directory: _save(directory, 4)):
        checkpointer = Checkpointer(directory)
        found = checkpointer.list_existing_checkpoint_indices()
        assert found in ([1, 2, 3], [1, 2, 3, 4]), where
        for epoch in (1, 2, 3):
            assert same_bytes(state_of(directory, epoch), old[epoch])
        if 4 in found:
            checkpointer.verify(4)
            assert checkpointer.read(4).log == ["new"]
        assert checkpointer.start(small_model()).start_epoch == found[-1] + 1
        seen.add((where, 4 in found))
        if not survived:  # the next save of the same epoch is not in the way of what was left
            _save(directory, 4)
            checkpointer.verify(4)
            names = {file.name for file in (directory / "checkpoint=4").iterdir()}
            manifest = checkpointer.read(4).manifest
            assert names >= {"manifest.json", *(entry.name for entry in manifest.files)}
    assert {("pwrite", False), ("replace", False), ("fsync", False), ("", True)} <= seen


def test_saving_an_epoch_again_keeps_the_old_one_until_the_new_one_is_committed(sweep: Any) -> None:
    base, run = sweep
    old = state_of(base, 3)
    outcomes = set()
    for directory, survived, where in run(lambda directory: _save(directory, 3)):
        checkpointer = Checkpointer(directory)
        assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3], where
        checkpointer.verify(3)
        new = checkpointer.read(3).log == ["new"]
        assert new or same_bytes(state_of(directory, 3), old)
        assert new or not survived
        outcomes.add(new)
    assert outcomes == {True, False}


def test_a_new_branch_abandons_the_old_one_or_has_not_begun(sweep: Any) -> None:
    _, run = sweep
    outcomes = set()
    for directory, survived, where in run(lambda directory: _save(directory, 2, continue_from=1)):
        checkpointer = Checkpointer(directory)
        assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3], where
        for epoch in (1, 2, 3):
            checkpointer.verify(epoch)
        last = checkpointer.index_of_last_checkpoint()
        new = checkpointer.read(2).log == ["new"]
        assert last == 2 if new else last in (1, 3)
        assert new or not survived
        outcomes.add((new, last))
    assert (True, 2) in outcomes
    assert (False, 3) in outcomes


def test_deleting_is_done_or_not_begun_or_leaves_no_checkpoint(sweep: Any) -> None:
    _, run = sweep
    for directory, _, where in run(lambda directory: Checkpointer(directory).prune(keep_last=1)):
        for epoch in Checkpointer(directory).list_existing_checkpoint_indices():
            Checkpointer(directory).verify(epoch)
        assert Checkpointer(directory).index_of_last_checkpoint() == 3, where


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync", "replace", "open", "mkdir"])
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
    from ray_imuckpt.transaction import save

    directory = trained(1)
    real = save._check_complete

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.setattr(save, "_check_complete", real)
        Checkpointer(directory, blocking=True).checkpoint(2, model=small_model())

    monkeypatch.setattr(save, "_check_complete", meanwhile)
    Checkpointer(directory, blocking=True).checkpoint(2, model=small_model(3))
    Checkpointer(directory).verify(2)


@pytest.mark.parametrize("answer", ["lost", "unknown"])
def test_a_store_that_loses_its_answer_to_the_commit(
    trained: Any, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """The manifest arrived, the store said no: the files that it names must stay."""
    from ray_imuckpt.storage.local import LocalStorage

    directory = trained(1)
    real_put, real_get = LocalStorage.put, LocalStorage.get

    def put(self: LocalStorage, name: str, data: bytes) -> None:
        real_put(self, name, data)
        if name.endswith("manifest.json"):
            raise TimeoutError("no answer")

    def get(self: LocalStorage, name: str) -> bytes:
        if answer == "unknown" and name.endswith("manifest.json"):
            raise TimeoutError("no answer")
        return real_get(self, name)

    monkeypatch.setattr(LocalStorage, "put", put)
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
        time.sleep(0.3 + 0.2 * moment.random())
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
