"""What all ranks of a gang decide alike about their saves; run by test_gang.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import nn

from conftest import small_model
from ray_imuckpt import Checkpointer, Retention, SaveFailedError, training
from ray_imuckpt.storage.local import LocalStorage
from support.gangs.common import error_of, same_everywhere
from support.logs import Messages


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def failed_saves_are_tolerated_on_every_rank(directory: Path, rank: int) -> None:
    """Rank 0's storage fails; all ranks go on, count alike, and end with the same error."""
    messages = Messages()
    warnings = messages.begin()
    model = small_model()
    for blocking in (False, True):
        where = directory / str(blocking)
        checkpointer = Checkpointer(
            where, blocking=blocking, on_save_error="warn", max_failed_saves=2
        )
        checkpointer.start(model)
        errors = []
        for epoch in range(1, 7):
            broken = mock.patch.object(LocalStorage, "write", _full)
            with broken if epoch in (2, 4, 5) else contextlib.nullcontext():
                pending = checkpointer.checkpoint(epoch, model=model, metrics={"loss": 1.0})
                assert pending is not None
                pending.wait()
            errors.append(str(pending.error))
        assert [error != "None" for error in errors] == [False, True, False, True, True, False]
        same_everywhere(str(errors))
        same_everywhere(str(checkpointer.list_existing_checkpoint_indices()))
        assert checkpointer.list_existing_checkpoint_indices() == [1, 3, 6]
        with mock.patch.object(LocalStorage, "write", _full):
            for epoch in (7, 8):
                checkpointer.checkpoint(epoch, model=model)
                checkpointer.wait()
            error = error_of(lambda: _saved(checkpointer, 9, model))  # noqa: B023
        assert isinstance(error, SaveFailedError)
        assert (error.epoch, error.rank) == (9, 0)
        same_everywhere(str(error))
    expected = 2 * 5 if rank == 0 else 0
    assert len([w for w in warnings if "training goes on" in w]) == expected, warnings
    messages.end()


def _saved(checkpointer: Checkpointer, epoch: int, model: nn.Module) -> None:
    checkpointer.checkpoint(epoch, model=model)
    checkpointer.wait()


def the_clock_of_rank_zero_decides(directory: Path, rank: int) -> None:
    """Rank 1's clock stands still, and rank 0's does not: all save, or none does."""
    now = [0.0]
    times = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    with mock.patch.object(training, "time", times):
        checkpointer = Checkpointer(directory, save_interval=100)
        checkpointer.start(small_model())
        saved = []
        for epoch in range(1, 9):
            now[0] += 0 if rank else 30
            saved.append(checkpointer.checkpoint(epoch, model=small_model()) is not None)
        checkpointer.wait()
    assert [epoch for epoch, was in enumerate(saved, 1) if was] == [4, 8]


def rank_zero_deletes_what_no_rule_keeps(directory: Path, rank: int) -> None:
    """The others neither delete nor wait; `on_commit` is called on rank 0 alone.

    A done-callback is called on each rank, once that knows: on rank 1 when the ranks next meet.
    """
    calls: list[str] = []
    done: list[tuple[int, str]] = []
    checkpointer = Checkpointer(
        directory,
        retention=Retention(keep_last=2),
        on_commit=lambda path, _metrics: calls.append(path),
    )
    model = small_model()
    checkpointer.start(model)
    for epoch in range(1, 5):
        pending = checkpointer.checkpoint(epoch, model=model)
        assert pending is not None
        if rank:
            assert (len(done), pending.state) == (epoch - 1, "staging")
        pending.add_done_callback(lambda save: done.append((save.epoch, save.state)))
    checkpointer.wait()
    assert done == [(epoch, "committed") for epoch in range(1, 5)]
    assert checkpointer.list_existing_checkpoint_indices() == [3, 4]
    expected = [str(directory / f"checkpoint={epoch}") for epoch in range(1, 5)]
    assert calls == ([] if rank else expected)
    dist.barrier()
