"""Gangs that lose a rank: forks the ranks of each story and keeps what they tell.

    python -m support.gangs.losses DIRECTORY STORY 2:STORY    a gang of three, then one of two

A process of its own, run by test_lost_ranks.py: torch is imported once, and forked before it has
threads. The store of the gang is kept here, so that any rank may die.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from ray_imuckpt import Checkpointer, GangBrokenError
from ray_imuckpt.gang import watch
from ray_imuckpt.loading import reader
from ray_imuckpt.saving import receipts
from ray_imuckpt.storage.local import LocalStorage
from support.logs import Messages
from support.waiting import PATIENCE, until

RANKS = 3


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except GangBrokenError as error:
        return str(error)
    return "no error"


def _sharded() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def _in_step(directory: Path) -> None:
    """Import all that a start takes, and meet: no rank is to be late for such a reason."""
    Checkpointer(directory / "other").start(nn.Linear(2, 2))
    dist.barrier()


def dies_after_a_save_was_begun(directory: Path, rank: int) -> dict[str, Any]:
    checkpointer = Checkpointer(directory)
    pending = checkpointer.checkpoint(1, model=nn.Linear(2, 2))
    if rank == 1:
        os._exit(0)
    assert pending is not None
    told = _error_of(checkpointer.wait)
    return {
        "told": told,
        "again": _error_of(pending.wait),
        "later": _error_of(lambda: checkpointer.checkpoint(2, model=nn.Linear(2, 2))),
    }


def dies_while_all_write(directory: Path, rank: int) -> dict[str, Any]:
    receipts._GRACE = 0.1
    model = _sharded()
    checkpointer = Checkpointer(directory)
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    if rank == 1:
        receipts.put = lambda *_: os._exit(0)  # on the thread that writes
    pending = checkpointer.checkpoint(2, model=model)
    assert pending is not None
    told = _error_of(checkpointer.wait)
    if rank == 0:
        until(pending.done)
    return {"told": told, "saved": checkpointer.list_existing_checkpoint_indices()}


def rank_1_of_two_dies_while_both_write(directory: Path, rank: int) -> dict[str, Any]:
    return _one_dies_while_both_write(directory, rank, lost=1)


def rank_0_of_two_dies_while_both_write(directory: Path, rank: int) -> dict[str, Any]:
    return _one_dies_while_both_write(directory, rank, lost=0)


def _one_dies_while_both_write(directory: Path, rank: int, lost: int) -> dict[str, Any]:
    """The lost rank has its files in place, and dies on the thread that writes."""
    receipts._GRACE = 0.1
    model = _sharded()
    checkpointer = Checkpointer(directory)
    checkpointer.start(model)
    if rank == lost:
        for name in ("put", "collect"):  # rank 1 puts its receipt, rank 0 collects them
            setattr(receipts, name, lambda *_: os._exit(0))
    pending = checkpointer.checkpoint(1, model=model)
    assert pending is not None
    told = _error_of(checkpointer.wait)
    if rank == 0:
        until(pending.done)
    return {
        "told": told,
        "later": _error_of(lambda: checkpointer.checkpoint(2, model=model)),
        "saved": checkpointer.list_existing_checkpoint_indices(),
        "files": [file.name for file in directory.glob(f"*/*-{rank}.*")],
    }


def one_of_two_never_writes(directory: Path, rank: int) -> dict[str, Any]:
    model = _sharded()
    _in_step(directory.parent)
    checkpointer = Checkpointer(directory, timeout=2)
    checkpointer.start(model)
    put = receipts.put
    if rank == 1:

        def late(*arguments: Any) -> None:
            until((directory.parent / "left").exists)
            put(*arguments)

        receipts.put = late  # type: ignore[assignment]
    pending = checkpointer.checkpoint(1, model=model)
    assert pending is not None
    if rank == 1:
        until((directory.parent / "left").exists)
        return {}
    until(pending.done)
    told = _error_of(checkpointer.wait)
    (directory.parent / "left").touch()
    return {"told": told, "saved": checkpointer.list_existing_checkpoint_indices()}


def rank_zero_dies_before_a_save(directory: Path, rank: int) -> dict[str, Any]:
    checkpointer = Checkpointer(directory)
    checkpointer.start(nn.Linear(2, 2))
    if rank == 0:
        os._exit(0)
    return {"told": _error_of(lambda: checkpointer.checkpoint(1, model=nn.Linear(2, 2)))}


def does_not_come(directory: Path, rank: int) -> dict[str, Any]:
    _in_step(directory.parent)
    checkpointer = Checkpointer(directory, timeout=2)
    checkpointer.start(nn.Linear(2, 2))
    if rank == 2:
        until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 1)))
        return {}
    told = _error_of(lambda: checkpointer.checkpoint(1, model=nn.Linear(2, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told}


def never_starts(directory: Path, rank: int) -> dict[str, Any]:
    _in_step(directory.parent)  # all come to a gang with another deadline, which says nothing here
    checkpointer = Checkpointer(directory, timeout=2)
    if rank == 1:
        until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 2)))
        return {}
    told = _error_of(lambda: checkpointer.start(nn.Linear(2, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told}


def _restores_where_rank_one_sees_nothing(
    directory: Path, rank: int, timeout: float, on_rank_two: Callable[[], object]
) -> dict[str, Any]:
    """Restore shards; what rank 1 needs is read by rank 2, which has least, and does this there."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(300, 61))
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
        return model

    with Checkpointer(directory) as checkpointer:
        checkpointer.checkpoint(1, model=build())
    _in_step(directory.parent)
    reader._SMALL = 70_000  # what belongs to no tensor is small
    real = LocalStorage.read_all

    def read_all(self: LocalStorage, readings: Any) -> None:
        if rank == 2 and threading.current_thread().name == "imuckpt-read":
            on_rank_two()
        real(self, readings)

    LocalStorage.read_all = read_all  # type: ignore[method-assign]
    mine = directory if rank != 1 else directory / "not-mounted-here"
    told = _error_of(lambda: Checkpointer(mine, timeout=timeout).start(build()))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told}


def dies_while_it_reads_for_another(directory: Path, rank: int) -> dict[str, Any]:
    return _restores_where_rank_one_sees_nothing(directory, rank, PATIENCE, lambda: os._exit(0))


def reads_for_ever(directory: Path, rank: int) -> dict[str, Any]:
    left = [directory.parent / f"left-{other}" for other in (0, 1)]
    return _restores_where_rank_one_sees_nothing(
        directory, rank, 2, lambda: until(lambda: all(one.exists() for one in left))
    )


def is_interrupted_in_a_meeting(directory: Path, rank: int) -> dict[str, Any]:
    class Interrupted(nn.Linear):
        def get_extra_state(self) -> Any:
            if rank == 1:
                raise KeyboardInterrupt
            return None

        def set_extra_state(self, state: Any) -> None:
            """Nothing."""

    checkpointer = Checkpointer(directory)
    checkpointer.start(nn.Linear(2, 2))
    try:
        told = _error_of(lambda: checkpointer.checkpoint(1, model=Interrupted(2, 2)))
    except KeyboardInterrupt:
        told = "interrupted"
        until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told, "later": _error_of(checkpointer.preempted)}


def comes_late(directory: Path, rank: int) -> dict[str, Any]:
    watch.WARN_AFTER = 0.1
    records = Messages().begin()
    checkpointer = Checkpointer(directory)
    model = nn.Linear(2, 2)
    checkpointer.start(model)
    if rank == 2:
        until((directory.parent / "told").exists)
    elif rank == 0:

        def tell() -> None:
            until(lambda: any("Waiting for" in text for text in records))
            (directory.parent / "told").touch()

        threading.Thread(target=tell).start()
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    return {"records": records, "saved": checkpointer.list_existing_checkpoint_indices()}


def _rank(story: Callable[..., Any], directory: Path, rank: int, ranks: int, port: int) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        told = story(directory / "run", rank)
    except BaseException:  # noqa: BLE001 - told
        told = {"failed": traceback.format_exc()}
    (directory / f"{rank}.json").write_text(json.dumps(told))
    sys.stderr.flush()
    os._exit(0)  # an orderly end would wait for the ranks that are gone


def _play(directory: Path, name: str, ranks: int) -> None:
    """Play a story on ranks that are forked, and wait for their end."""
    directory.mkdir()
    # The store has threads, which may hold a lock of the C library at any moment: a process that is
    # forked then waits for it for ever. So it is made behind the forks, and its port is sent.
    children = []
    ports = []
    for rank in range(ranks):
        receives, sends = os.pipe()
        child = os.fork()
        if child == 0:
            _rank(globals()[name], directory, rank, ranks, int(os.read(receives, 16)))
        children.append(child)
        ports.append(sends)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for sends in ports:
        os.write(sends, str(store.port).encode())
    for child in children:
        os.waitpid(child, 0)


def main() -> None:
    """Play the stories named on the command line, each in a directory and a process of its own."""
    torch.set_num_threads(1)
    watch._PATIENCE = PATIENCE  # the store answers, however busy the machine is
    for story in sys.argv[2:]:
        size, _, name = story.rpartition(":")
        child = os.fork()
        if child == 0:
            _play(Path(sys.argv[1], name), name, int(size or RANKS))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


if __name__ == "__main__":
    main()
