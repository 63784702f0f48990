"""What happens to a run is told: what it goes on from, each commit, and what is lost at its end."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import python_path, small_model
from ray_imuckpt import Checkpointer, ImuckptError, SaveFailedError, load, units
from ray_imuckpt.storage.local import LocalStorage


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ray_imuckpt")
    return caplog


def lines(told: pytest.LogCaptureFixture, level: int) -> list[str]:
    gc.collect()
    found = [r.message for r in told.records if r.levelno == level]
    told.clear()
    return found


def test_start_tells_what_it_resumed_or_that_there_was_nothing(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Which epoch, how large, in what time, from where, and what of it; or where it has looked."""
    model = small_model()
    Checkpointer(tmp_path).start(model)
    assert lines(told, logging.INFO) == [
        f"Beginning from scratch: there is no checkpoint in {tmp_path}."
    ]
    Checkpointer(tmp_path, blocking=True).checkpoint(7, model=model)
    lines(told, logging.INFO)
    Checkpointer(tmp_path).start(model)
    first, second = lines(told, logging.INFO)
    assert re.fullmatch(
        rf"Resumed from epoch 7: [\d.]+ kB in [\d.]+ s from {tmp_path}/checkpoint=7\.", first
    )
    assert re.fullmatch(
        r"Restored: model, random state; saved: [\d-]+ [\d:]+ UTC by run [0-9a-f]{12}; "
        r"gang: 1 rank\.",
        second,
    )
    Checkpointer(tmp_path, continue_from="none").start(model)
    assert lines(told, logging.INFO) == [
        f"Beginning from scratch, as asked; checkpoints go to {tmp_path}."
    ]


@pytest.mark.parametrize("blocking", [True, False])
def test_every_commit_is_told(
    tmp_path: Path, told: pytest.LogCaptureFixture, *, blocking: bool
) -> None:
    """Epoch, bytes, how long training waited, how long until it was durable, and where."""
    checkpointer = Checkpointer(tmp_path, blocking=blocking)
    for epoch in (1, 2):
        checkpointer.checkpoint(epoch, model=small_model())
    checkpointer.wait()
    found = lines(told, logging.INFO)
    assert len(found) == 2
    for epoch, line in enumerate(found, 1):
        assert re.fullmatch(
            rf"Committed epoch {epoch}: [\d.]+ kB, training waited [\d.]+ s, "
            rf"durable after [\d.]+ s, at {tmp_path}/checkpoint={epoch}\.",
            line,
        )
    size = sum(entry.size for entry in checkpointer.read(2).manifest.files)
    assert units.size(size) in found[1]


def test_a_save_that_failed_is_not_told_as_committed(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Its error is raised, and nothing else is said."""
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(SaveFailedError):
        Checkpointer(tmp_path / "run", blocking=True).checkpoint(1, model=small_model())
    assert lines(told, logging.INFO) == []


def test_the_last_epoch_is_saved_whatever_its_number(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """last= saves as force= does, and then nothing is lost."""
    checkpointer = Checkpointer(tmp_path, save_every=5)
    for epoch in range(1, 13):
        checkpointer.checkpoint(epoch, model=small_model(), last=epoch == 12)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [5, 10, 12]
    del checkpointer
    assert lines(told, logging.WARNING) == []


LOST = (
    "Epochs 11 to 12 were trained, and no checkpoint holds them (save_every=5). Save the last "
    "epoch whatever its number: checkpoint(..., last=epoch == <number of epochs>)."
)


def train(directory: Path, last: int = 12) -> Checkpointer:
    checkpointer = Checkpointer(directory, save_every=5)
    for epoch in range(1, last + 1):
        checkpointer.checkpoint(epoch, model=small_model())
    checkpointer.wait()
    return checkpointer


@pytest.mark.parametrize("how", ["gone", "with", "start", "thread"])
def test_epochs_that_no_checkpoint_holds_are_told_when_training_ends(
    tmp_path: Path, told: pytest.LogCaptureFixture, how: str
) -> None:
    """When its Checkpointer goes, is left or begins anew, or the thread ends, as Ray's do."""
    kept: list[Checkpointer] = []
    if how == "thread":
        thread = threading.Thread(target=lambda: kept.append(train(tmp_path)))
        thread.start()
        thread.join()
    elif how == "with":
        with train(tmp_path) as checkpointer:
            assert lines(told, logging.WARNING) == []
        kept.append(checkpointer)
    elif how == "start":
        kept.append(train(tmp_path))
        assert lines(told, logging.WARNING) == []
        kept[0].start(small_model())
    else:
        train(tmp_path)
    assert lines(told, logging.WARNING) == [LOST]
    kept.clear()
    assert lines(told, logging.WARNING) == [], "once"


def test_epochs_that_no_checkpoint_holds_are_told_at_exit(tmp_path: Path) -> None:
    """A script keeps its Checkpointer until it ends; a process that it forks says nothing."""
    program = f"""
import os
from test_log_messages import train
kept = train({str(tmp_path)!r}, last=6)
child = os.fork()
if child == 0:
    raise SystemExit
os.waitpid(child, 0)
"""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stderr
    assert told.count("Epoch 6 was trained, and no checkpoint holds it (save_every=5).") == 1


CALLS: dict[str, Callable[[Path], Any]] = {
    "start": lambda d: Checkpointer(d).start(small_model()),
    "start at an epoch": lambda d: Checkpointer(d).start(small_model(), continue_from=3),
    "load": lambda d: Checkpointer(d).load(small_model()),
    "load a path": lambda d: load(small_model(), d / "checkpoint=3"),
    "read the model": lambda d: Checkpointer(d).read(3).model,
    "read the log": lambda d: Checkpointer(d).read(3).log,
    "last": lambda d: Checkpointer(d).index_of_last_checkpoint(),
    "list": lambda d: Checkpointer(d).list_existing_checkpoint_indices(),
    "verify": lambda d: Checkpointer(d).verify(3),
    "prune": lambda d: Checkpointer(d).prune(keep_last=1),
}
"""All that reads."""


@pytest.mark.parametrize("method", ["get", "read_into", "size", "holding", "check_writable"])
@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "not yours"), OSError(5, "broken"), RuntimeError("a library's own")],
    ids=lambda error: type(error).__name__,
)
def test_what_a_storage_raises_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    """Whatever reads raises errors of this package only, which say where and what to do."""
    Checkpointer(tmp_path, blocking=True).checkpoint(3, model=small_model())
    failed = 0

    def refuse(*_: Any) -> None:
        nonlocal failed
        failed += 1
        raise error

    monkeypatch.setattr(LocalStorage, method, refuse)
    for name, call in CALLS.items():
        failed, raised = 0, None
        try:
            call(tmp_path)
        except ImuckptError as told:
            raised = told
        if raised is None:
            assert not failed, f"{name} has passed over it"
            continue
        assert type(error).__name__ in str(raised), name
        assert isinstance(raised, OSError) == isinstance(error, OSError), name
        assert str(raised.url).startswith(str(tmp_path)), name
        assert raised.hint, name
        assert raised.__cause__ is error, name


def test_what_does_not_fit_is_told_with_its_place(tmp_path: Path) -> None:
    """The checkpoint and the epoch stand in every error of a restore; the rank in that of start."""
    Checkpointer(tmp_path, blocking=True).checkpoint(3, model=small_model())
    for call, rank in (
        (lambda m: Checkpointer(tmp_path).load(m, 3), None),
        (lambda m: Checkpointer(tmp_path).start(m), 0),
    ):
        with pytest.raises(ImuckptError) as caught:
            call(nn.Linear(1, 1))
        assert caught.value.url == f"{tmp_path}/checkpoint=3"
        assert caught.value.epoch == 3
        assert caught.value.rank == rank
        assert caught.value.hint


def test_a_device_that_torch_does_not_know_is_a_wrong_argument(tmp_path: Path) -> None:
    """Before anything is read."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    for call in (checkpointer.start, checkpointer.load):
        with pytest.raises(ValueError, match="device='nowhere'"):
            call(small_model(), device="nowhere")


def test_sizes_and_times_are_told_as_people_read_them() -> None:
    """Three figures or so, with their unit."""
    assert [units.size(n) for n in (0, 999, 1000, 1_800_000_000, 5e15)] == [
        "0 B", "999 B", "1.0 kB", "1.8 GB", "5000.0 TB",
    ]  # fmt: skip
    assert [units.seconds(t) for t in (0.0004, 0.1234, 12.34, 612.0)] == [
        "0.000 s", "0.123 s", "12.3 s", "612 s",
    ]  # fmt: skip
    assert units.listed(["a", "b", "c"], most=2) == "a, b, and 1 more"


def test_training_goes_on_with_a_tensor_of_metrics(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """An epoch that is not due reports its metrics and is noted; one that is forced clears it."""
    checkpointer = Checkpointer(tmp_path, save_every=3)
    assert checkpointer.checkpoint(1, model=small_model(), metrics={"a": torch.ones(1)}) is None
    assert checkpointer.checkpoint(2, model=small_model(), force=True) is not None
    checkpointer.wait()
    del checkpointer
    assert lines(told, logging.WARNING) == []
