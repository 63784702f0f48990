"""Forks the ranks of a gang from this process, which imports torch once for all of them.

What is forked must have started no thread. Torch is imported by the first optimizer to a good part:
`import_all` does it here, so that no rank has to.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist


def import_all() -> None:
    """Import what torch imports late, and let no kernel start threads."""
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])


def on_ranks(ranks: int, play: Callable[[int], None]) -> dict[int, int]:
    """Call a function in a process of its own for each rank, and wait for all of them.

    Once one has not ended well, the others are told to go by SIGTERM, as torchrun does.

    Returns:
        How each rank ended: 0, a status, or minus a signal.
    """
    children: dict[int, int] = {}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _play(play, rank)
        children[child] = rank
    ended: dict[int, int] = {}
    while children:
        child, status = os.waitpid(-1, 0)
        ended[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in children:
                os.kill(other, signal.SIGTERM)
    return ended


def on_gang(ranks: int, play: Callable[[int], None]) -> dict[int, int]:
    """Do the same as `on_ranks`, in a process group of gloo, where there are several ranks."""
    if ranks == 1:
        return on_ranks(1, play)
    with tempfile.TemporaryDirectory() as place:

        def join(rank: int) -> None:
            store = dist.FileStore(f"{place}/store", ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
            play(rank)

        return on_ranks(ranks, join)


def _play(play: Callable[[int], None], rank: int) -> None:
    """Be a rank; does not return."""
    status = 1
    try:
        play(rank)
        status = 0
    except BaseException:  # noqa: BLE001 - it is told by its status
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
