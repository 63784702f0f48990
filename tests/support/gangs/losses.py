"""Gangs that lose a rank: forks the ranks of each story and keeps what they tell.

A process of its own, run by test_lost_ranks.py: torch is imported once, and forked before it has
threads. The store of the gang is kept here, so that any rank may die.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
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
from ray_imuckpt.saving import receipts
from support.logs import Messages

RANKS = 3


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except GangBrokenError as error:
        return str(error)
    return "no error"


def _until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)


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
    model = nn.Sequential(nn.Linear(4, 4))
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    checkpointer = Checkpointer(directory)
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    if rank == 1:
        receipts.put = lambda *_: os._exit(0)  # on the thread that writes
    pending = checkpointer.checkpoint(2, model=model)
    assert pending is not None
    told = _error_of(checkpointer.wait)
    if rank == 0:
        _until(pending.done)
    return {"told": told, "saved": checkpointer.list_existing_checkpoint_indices()}


def rank_zero_dies_before_a_save(directory: Path, rank: int) -> dict[str, Any]:
    checkpointer = Checkpointer(directory)
    checkpointer.start(nn.Linear(2, 2))
    if rank == 0:
        os._exit(0)
    return {"told": _error_of(lambda: checkpointer.checkpoint(1, model=nn.Linear(2, 2)))}


def does_not_come(directory: Path, rank: int) -> dict[str, Any]:
    checkpointer = Checkpointer(directory, timeout=2)
    checkpointer.start(nn.Linear(2, 2))
    if rank == 2:
        _until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 1)))
        return {}
    told = _error_of(lambda: checkpointer.checkpoint(1, model=nn.Linear(2, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told}


def never_starts(directory: Path, rank: int) -> dict[str, Any]:
    checkpointer = Checkpointer(directory, timeout=2)
    if rank == 1:
        _until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 2)))
        return {}
    told = _error_of(lambda: checkpointer.start(nn.Linear(2, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told}


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
        _until(lambda: all((directory.parent / f"left-{other}").exists() for other in (0, 2)))
    (directory.parent / f"left-{rank}").touch()
    return {"told": told, "later": _error_of(checkpointer.preempted)}


def comes_late(directory: Path, rank: int) -> dict[str, Any]:
    watch.WARN_AFTER = 0.1
    records = Messages().begin()
    checkpointer = Checkpointer(directory)
    model = nn.Linear(2, 2)
    checkpointer.start(model)
    if rank == 2:
        _until((directory.parent / "told").exists)
    elif rank == 0:

        def tell() -> None:
            _until(lambda: any("Waiting for" in text for text in records))
            (directory.parent / "told").touch()

        threading.Thread(target=tell).start()
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    return {"records": records, "saved": checkpointer.list_existing_checkpoint_indices()}


def _rank(story: Callable[..., Any], directory: Path, rank: int, port: int) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
        told = story(directory / "run", rank)
    except BaseException:  # noqa: BLE001 - told
        told = {"failed": traceback.format_exc()}
    (directory / f"{rank}.json").write_text(json.dumps(told))
    sys.stderr.flush()
    os._exit(0)  # an orderly end would wait for the ranks that are gone


def main() -> None:
    """Run the story named on the command line in a directory of its own."""
    torch.set_num_threads(1)
    name = sys.argv[2]
    directory = Path(sys.argv[1], name)
    directory.mkdir()
    # The store has threads, which may hold a lock of the C library at any moment: a process that is
    # forked then waits for it for ever. So it is made behind the forks, and its port is sent.
    children = []
    ports = []
    for rank in range(RANKS):
        receives, sends = os.pipe()
        child = os.fork()
        if child == 0:
            _rank(globals()[name], directory, rank, int(os.read(receives, 16)))
        children.append(child)
        ports.append(sends)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for sends in ports:
        os.write(sends, str(store.port).encode())
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
