"""Interrupts, forks, shutdown and odd modes of torch: a save is whole, or told, and never mixed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, in_a_child, python_path, same_bytes, small_model
from ray_imuckpt import Checkpointer, SaveFailedError
from ray_imuckpt.saving import writer
from ray_imuckpt.saving.operation import SaveOperation
from ray_imuckpt.storage.local import LocalStorage
from ray_imuckpt.threads import worker
from support.programs import HANGS
from support.waiting import PATIENCE


def filled(value: float) -> nn.Module:
    model = nn.Linear(64, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


class Slow:
    """Data files are written after a moment, so that a save is in flight for it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        real = LocalStorage.write
        self.reached = threading.Event()
        self.open = threading.Event()

        def write(storage: LocalStorage, name: str, *rest: Any) -> None:
            self.reached.set()
            assert self.open.wait(PATIENCE)
            real(storage, name, *rest)

        patch.setattr(LocalStorage, "write", write)


def interrupted_after(holder: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """The first call of it works, and is followed by Ctrl-C."""
    real = getattr(holder, name)
    calls: list[int] = []

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        result = real(*arguments, **keywords)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    patch.setattr(holder, name, wrapped)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["eager", "overlap"])
@pytest.mark.parametrize("place", ["copy", "start", "started", "twice"])
def test_after_an_interrupt_in_checkpoint_no_save_is_forgotten_or_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    """Wherever Ctrl-C strikes: the fence opens, the next save is whole, each epoch is its own."""
    slow = Slow(monkeypatch)
    checkpointer = Checkpointer(tmp_path, snapshot=kind)
    model = filled(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with monkeypatch.context() as patch:
        if place == "copy":
            interrupted_after(checkpointer._training._saver._buffers, "copy", patch)
        elif place == "start":
            interrupted_after(worker.Worker, "start", patch)
        elif place == "started":
            interrupted_after(writer.Writing, "start", patch)
        else:  # before the thread is there, and again before the save is given up
            patch.setattr(worker.Worker, "start", interrupt)
            patch.setattr(SaveOperation, "give_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    weight = model.get_parameter("weight")
    weight.grad = torch.ones_like(weight)
    stepped = threading.Thread(target=optimizer.step, daemon=True)
    stepped.start()  # the fence must not hold it for ever
    stepped.join(PATIENCE)
    assert not stepped.is_alive()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    threading.Timer(0.2, slow.open.set).start()
    checkpointer.checkpoint(2, model=model, optimizer=optimizer)
    checkpointer.wait()
    for epoch in checkpointer.list_existing_checkpoint_indices():
        for tensor in checkpointer.read(epoch).model.values():
            assert tensor.unique().tolist() == [float(epoch)]
    assert checkpointer.index_of_last_checkpoint() == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_during_a_save_is_told_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers of a DataLoader are."""
    slow = Slow(monkeypatch)
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    pending = checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    assert pending is not None
    assert slow.reached.wait(PATIENCE)

    def waits() -> bool:
        try:
            pending.wait()
        except SaveFailedError as error:
            return "forked" in str(error)
        return False

    def steps() -> bool:
        optimizer.step()
        return True

    assert in_a_child(waits)
    assert in_a_child(steps)
    slow.open.set()
    pending.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [1]


def test_a_checkpoint_in_an_atexit_handler_is_committed(tmp_path: Path) -> None:
    """Python's end waits for it."""
    script = textwrap.dedent("""
        import atexit, sys, torch
        from ray_imuckpt import Checkpointer

        checkpointer = Checkpointer(sys.argv[1])
        model = torch.nn.Linear(3, 3)
        checkpointer.checkpoint(1, model=model)
        atexit.register(lambda: checkpointer.checkpoint(2, model=model))
    """)
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": python_path()}, check=True, timeout=HANGS,
    )  # fmt: skip
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [1, 2]


def test_a_default_device_of_torch_changes_nothing(tmp_path: Path) -> None:
    """Host copies and restores stay on the CPU."""
    saved = small_model(seed=1)
    optimizer = adamw(saved)
    model = small_model(seed=2)
    fresh = adamw(model)
    torch.set_default_device("meta")
    try:
        for blocking in (False, True):
            checkpointer = Checkpointer(tmp_path, blocking=blocking)
            checkpointer.checkpoint(1, model=saved, optimizer=optimizer, log=[1])
            checkpointer.wait()
            Checkpointer(tmp_path).start(model, fresh)
    finally:
        torch.set_default_device(None)
    assert same_bytes(dict(model.state_dict()), dict(saved.state_dict()))


@pytest.mark.parametrize("kind", ["eager", "overlap"])
def test_a_first_save_in_inference_mode_spoils_no_later_one(tmp_path: Path, kind: str) -> None:
    """Buffers that are kept are no inference tensors."""
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, snapshot=kind)
    with torch.inference_mode():
        checkpointer.checkpoint(1, model=model, optimizer=optimizer)
        checkpointer.wait()
    checkpointer.checkpoint(2, model=model, optimizer=optimizer)
    checkpointer.wait()
    assert same_bytes(checkpointer.read(2).model, checkpointer.read(1).model)


def test_a_failed_save_keeps_nothing_of_the_state_alive() -> None:
    """The error that is kept does not keep the frames of the save."""
    held: list[int] = []

    class State:
        def __del__(self) -> None:
            held.append(1)

    def save() -> Any:
        state = State()
        raise OSError(repr(state))

    writing = writer.Writing(save)
    writing.start(background=True)
    writing.wait()
    assert held == [1]
    with pytest.raises(OSError, match="State"):
        writing.result()
