"""Stories of saves that all ranks write together: what each writes, and how they fail."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer, SaveFailedError, StorageError
from ray_imuckpt.saving import collect, division, receipts
from ray_imuckpt.storage.local import LocalStorage
from support.gangs import zoo
from support.gangs.common import Position, error_of, full, same_everywhere
from support.gangs.spread import stored
from support.logs import Messages
from support.waiting import PATIENCE, until


def _names(directory: Path, epoch: int) -> list[str]:
    """Return the names of the files of a checkpoint without the save id; the same on all ranks."""
    dist.barrier()
    here = directory / f"checkpoint={epoch}"
    found = sorted(path.name for path in here.iterdir()) if here.exists() else []
    dist.barrier()
    return [
        f"{name[: name.index('-')]}{name[name.index('-') + 17 :]}" for name in found if "-" in name
    ]


@contextlib.contextmanager
def _broken_disk(here: bool) -> Iterator[None]:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch.object(LocalStorage, "write", full_disk) if here else contextlib.nullcontext():
        yield


def every_rank_writes_its_own_files(directory: Path, rank: int) -> None:
    """Of every part the pieces that it owns, and its own state; nothing is left beside them."""
    run = zoo.build("adapted")
    zoo.train(run, 1, 1)
    checkpointer = Checkpointer(directory)
    pending = checkpointer.checkpoint(1, model=run[0], optimizer=run[1])
    assert pending is not None
    pending.wait()
    assert pending.done()
    parts = ["model", "model_frozen", "optimizer", "state"]
    files = [f"{part}-{r}.safetensors" for part in parts for r in (0, 1)]
    expected = sorted([*files, "state-0.json", "state-1.json"])
    assert _names(directory, 1) == expected
    sizes = {entry.name: entry.size for entry in checkpointer.read(1).manifest.files}
    frozen = sorted(size for name, size in sizes.items() if "frozen" in name)
    assert frozen[1] < 1.5 * frozen[0], "even shares"


def frozen_files_are_not_written_again(directory: Path, rank: int) -> None:
    """Each rank has its own copied while they stay as they are, in another run too."""
    run = zoo.build("adapted")
    for epoch in (1, 2, 3):
        checkpointer = Checkpointer(directory, blocking=epoch == 2)
        checkpointer.start(*run)
        zoo.train(run, epoch, epoch)
        for again in range(2):
            number = 2 * epoch - 1 + again
            checkpointer.checkpoint(number, model=run[0], optimizer=run[1])
        checkpointer.wait()
    assert same_bytes(stored(directory, 6), zoo.whole(run))
    for number in (0, 1):
        frozen = directory.glob(f"checkpoint=*/model_frozen-*-{number}.safetensors")
        assert len({os.stat(path).st_ino for path in frozen}) == 1


def training_goes_on_while_ranks_copy(directory: Path, rank: int) -> None:
    """With ``snapshot="overlap"`` each rank's next step waits for its own copy alone."""
    run = zoo.build("fsdp")
    zoo.train(run, 1, 1)
    checkpointer = Checkpointer(directory, snapshot="overlap")
    for epoch in (1, 2, 3):
        expected = zoo.whole(run)
        checkpointer.checkpoint(epoch, model=run[0], optimizer=run[1])
        zoo.train(run, epoch + 1, epoch + 1)
        checkpointer.wait()
        assert same_bytes(stored(directory, epoch), expected)
    assert checkpointer._training._saver._fence is not None
    weight = zoo.local(run[0].get_parameter("first.weight")).detach()
    assert not weight.numel() or checkpointer._training._saver._fence.covers(weight)


def what_one_rank_cannot_write_nobody_commits(directory: Path, rank: int) -> None:
    """The error of one rank's disk is everyone's, names it, and leaves no file; then it goes on."""
    run = zoo.build("fsdp")
    zoo.train(run, 1, 1)
    for broken in (0, 1):
        for blocking in (False, True):
            here = directory / f"{broken}-{blocking}"
            checkpointer = Checkpointer(here, blocking=blocking)
            _saved(checkpointer, 1, run)
            with _broken_disk(rank == broken):
                error = error_of(lambda: _saved(checkpointer, 2, run))  # noqa: B023
            assert isinstance(error, SaveFailedError)
            assert (error.epoch, error.rank) == (2, broken)
            assert "No space left" in str(error)
            same_everywhere(str(error))
            assert _names(here, 2) == []
            _saved(checkpointer, 3, run)
            same_everywhere(str(checkpointer.list_existing_checkpoint_indices()))
            assert checkpointer.list_existing_checkpoint_indices() == [1, 3]


def _saved(checkpointer: Checkpointer, epoch: int, run: zoo.Run) -> None:
    checkpointer.checkpoint(epoch, model=run[0], optimizer=run[1])
    checkpointer.wait()


def a_save_that_one_rank_fails_may_be_tolerated(directory: Path, rank: int) -> None:
    """Rank 1's disk fails; all go on, warned of on rank 0, and end together after too many."""
    run = zoo.build("fsdp")
    checkpointer = Checkpointer(directory, on_save_error="warn", max_failed_saves=2)
    ends: list[str] = []
    with Messages() as warnings, _broken_disk(rank == 1):
        for epoch in (1, 2):
            pending = checkpointer.checkpoint(epoch, model=run[0], metrics={"loss": 1.0})
            assert pending is not None
            pending.add_done_callback(lambda save: ends.append(save.state))
            pending.wait()
            assert ends == ["failed"] * epoch
            assert isinstance(pending.error, SaveFailedError)
            same_everywhere(str(pending.error))
        error = error_of(lambda: _saved(checkpointer, 3, run))
    assert isinstance(error, SaveFailedError)
    same_everywhere(str(error))
    assert len([w for w in warnings if "training goes on" in w]) == (2 if rank == 0 else 0)


def a_rank_that_is_late_is_named(directory: Path, rank: int) -> None:
    """Rank 0 waits for its word, says so, gives up at the deadline; what comes later is removed."""
    run = zoo.build("fsdp")
    checkpointer = Checkpointer(directory)
    checkpointer.checkpoint(1, model=run[0], optimizer=run[1])
    checkpointer.wait()
    real, held = receipts.put, threading.Event()

    def late(*arguments: Any) -> None:
        held.wait(PATIENCE)
        real(*arguments)

    with (
        Messages() as warnings,
        mock.patch.object(receipts, "_WARN_AFTER", 0.1),
        mock.patch.object(receipts, "put", late),
        mock.patch.object(checkpointer._training._saver, "_timeout", 1.0),
    ):
        pending = checkpointer.checkpoint(2, model=run[0], optimizer=run[1])
        assert pending is not None
        if rank == 0:
            until(pending.done)
        else:
            time.sleep(1.5)
            assert not pending.done(), "it is for rank 0 to say"
            held.set()
        error = error_of(pending.wait)
    assert isinstance(error, SaveFailedError)
    assert "rank 1 did not say within" in str(error)
    same_everywhere(str(error))
    assert _names(directory, 2) == []
    if rank == 0:
        assert any("Waiting for rank 1" in text for text in warnings), warnings
    checkpointer.checkpoint(3, model=run[0], optimizer=run[1])
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [1, 3]


def a_spread_optimizer_is_not_brought_together(directory: Path, rank: int) -> None:
    """Of a large `ZeroRedundancyOptimizer` each rank writes the state of what it steps."""
    run = zoo.build("zero")
    zoo.train(run, 1, 2)
    expected = zoo.whole(run)
    checkpointer = Checkpointer(directory)
    consolidated = mock.patch.object(ZeroRedundancyOptimizer, "consolidate_state_dict", None)
    with mock.patch.object(division, "TOGETHER_FROM", 1), consolidated:
        for epoch in (1, 2):
            _saved(checkpointer, epoch, run)
    assert same_bytes(stored(directory, 2), expected)
    entries = [e for e in checkpointer.read(2).manifest.files if e.part == "optimizer"]
    assert len(entries) == 2
    zoo.train(run, 3, 4)
    for name in ("zero", "ddp"):
        again = zoo.build(name, seed=1)
        Checkpointer(directory).start(*again)
        assert same_bytes(zoo.whole(again), expected)
        zoo.train(again, 3, 4)
        assert same_bytes(zoo.whole(again), zoo.whole(run))


def ranks_that_see_other_storage(directory: Path, rank: int) -> None:
    """A sharded state is refused, with the ranks named; of a replicated one rank 0 writes all."""
    run = zoo.build("fsdp")
    mine = directory / str(rank)
    checkpointer = Checkpointer(mine)
    for _ in range(2):
        error = error_of(lambda: checkpointer.checkpoint(1, model=run[0], optimizer=run[1]))
        assert isinstance(error, StorageError)
        assert error.rank == 1
        assert "Rank 1 cannot see" in str(error)
        same_everywhere(str(error))
    replicated = DistributedDataParallel(small_model())
    with mock.patch.object(division, "TOGETHER_FROM", 1):
        checkpointer.checkpoint(1, model=replicated)
        checkpointer.wait()
    if rank == 0:
        assert same_bytes(checkpointer.read(1).model, dict(small_model().state_dict()))
    assert (mine / "checkpoint=1").exists() == (rank == 0)


def a_large_replicated_state_is_shared_out(directory: Path, rank: int) -> None:
    """Each rank writes a part of what all hold; what may differ is rank 0's, or each rank's own."""
    torch.manual_seed(0)
    model = DistributedDataParallel(small_model())
    optimizer = adamw(model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    average = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fully_shard(average, mesh=mesh)
    model(torch.arange(64.0).reshape(16, 4).sin()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        model.module.get_buffer("1.running_mean").fill_(rank)
    given: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "log": [rank], "average": average,
        "note": torch.full((3,), rank), "per_rank": {"at": Position(rank)},
    }  # fmt: skip
    expected = full(average.get_parameter("0.weight"))
    checkpointer = Checkpointer(directory)
    with mock.patch.object(division, "TOGETHER_FROM", 1), Messages():
        checkpointer.checkpoint(1, **given)
        checkpointer.wait()
    names = _names(directory, 1)
    assert {"model-0.safetensors", "model-1.safetensors", "optimizer-1.safetensors"} <= {*names}
    loaded = checkpointer.read(1)
    zeros: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(zeros, {n: t.clone() for n, t in model.module.state_dict().items()})
    assert same_bytes(loaded.model, zeros[0]), "buffers, too"
    assert loaded.log == [0]
    assert loaded.other["note"].tolist() == [0, 0, 0]
    assert torch.equal(loaded.other["average"]["0.weight"], expected)
    assert [state["per_rank"]["at"]["at"] for state in loaded.ranks] == [0, 1]
    position = Position()
    Checkpointer(directory).start(model, optimizer, average=average, per_rank={"at": position})
    assert position.at == rank
    del given["average"]
    for least, epoch in ((1, 2), (1 << 60, 3)):  # a rank's own state may be large, too
        own = mock.patch.object(collect, "_SMALL", 0)
        with mock.patch.object(division, "TOGETHER_FROM", least), own, Messages():
            checkpointer.checkpoint(epoch, **given)
            checkpointer.wait()
        assert len(checkpointer.read(epoch).manifest.files_of("state", "json")) == 3 - min(least, 2)
        assert [s["per_rank"]["at"]["at"] for s in checkpointer.read(epoch).ranks] == [0, 1]
