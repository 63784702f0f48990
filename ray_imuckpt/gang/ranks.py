"""Who am I in the gang, and how the gang speaks.

No collective of ours is ever called from a background thread, and none moves pickled objects: what
travels is bytes (`torch.distributed`'s object collectives unpickle what they receive).

Promise 6, no rank hangs: whatever may fail on one rank runs inside `together`, which ends with an
exchange of outcomes, so that all ranks raise the same error instead of waiting for one that left.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from ray_imuckpt.errors import GangBrokenError, ImuckptError, from_wire, to_wire
from ray_imuckpt.gang.gloo import TorchRanks

T = TypeVar("T")

_DONE, _FAILED = b".", b"!"


class Ranks(Protocol):
    """A gang of processes seen from one of them. All but `stale` and `leave` are collectives."""

    rank: int
    world_size: int

    def stale(self) -> bool:
        """Whether the gang has changed since: then this object must not be used again."""

    def leave(self, error: BaseException) -> None:
        """Let the others know that this rank does not come to their meeting, for this reason."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, in rank order, on every rank."""

    def gather(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, in rank order, on rank 0; [] elsewhere."""

    def broadcast(self, payload: bytes | None) -> bytes:
        """Rank 0's payload on every rank; the other ranks pass ``None``."""

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """Fill the one-dimensional uint8 CPU tensor `buffer` with rank 0's bytes, in place."""


class SoloRanks:
    """A gang of one."""

    rank = 0
    world_size = 1

    def stale(self) -> bool:
        """See `Ranks.stale`."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def leave(self, error: BaseException) -> None:
        """See `Ranks.leave`."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """See `Ranks.all_gather`."""
        return [payload]

    def gather(self, payload: bytes) -> list[bytes]:
        """See `Ranks.gather`."""
        return [payload]

    def broadcast(self, payload: bytes | None) -> bytes:
        """See `Ranks.broadcast`."""
        return payload or b""

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """See `Ranks.broadcast_into`."""


_HERE = b"r"
_SMALL = 400  # bytes of a result that fit into the first block of an exchange (`gloo`)

# One group for all Checkpointers of a process: each has threads, and sockets to every rank, until
# it is closed.
_MADE: dict[timedelta, TorchRanks] = {}


@atexit.register
def _close_all() -> None:
    while _MADE:
        _MADE.popitem()[1].close()


def current(timeout: timedelta) -> Ranks:
    """Return the gang of this process: torch.distributed's, or a gang of one.

    Args:
        timeout: How long a meeting waits for a rank that does not come; the same on all ranks.

    Raises:
        ImuckptError: This process was started as one of several by a launcher, but the process
            group was not initialized: every process would write the same checkpoint.
        GangBrokenError: Not all ranks came.
    """
    if dist.is_available() and dist.is_initialized():
        return _gang(timeout) if dist.get_world_size() > 1 else SoloRanks()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ImuckptError(
            f"A launcher started {os.environ['WORLD_SIZE']} processes, but torch.distributed is "
            "not initialized, so this process cannot find the others.",
            hint="Call torch.distributed.init_process_group() before the first use.",
        )
    return SoloRanks()


def _gang(timeout: timedelta) -> TorchRanks:
    for made in [key for key, ranks in _MADE.items() if ranks.stale()]:
        _MADE.pop(made).close()
    if timeout not in _MADE:
        _MADE[timeout] = TorchRanks(timeout)
    return _MADE[timeout]


def run_all(ranks: Ranks, step: Callable[[], tuple[T, bytes]]) -> tuple[T, list[bytes]]:
    """Run `step` on every rank and tell all what it says; if it raised on any, raise that on all.

    The error of the lowest failing rank wins and carries that rank's number. `step` must not call
    a collective unless all its failures precede it.

    Args:
        ranks: The gang.
        step: It returns what this rank goes on with, and a message to all ranks.

    Returns:
        What this rank goes on with, and the messages of all ranks in their order.
    """
    error: Exception | None = None
    result: tuple[T, bytes] | None = None
    try:
        result = step()
        told = _DONE + result[1]
    except Exception as raised:  # noqa: BLE001 - every failure is told to the others
        error = raised
        told = _FAILED + json.dumps(_located(error, ranks), default=str).encode()
    except BaseException as raised:  # an interrupt: this rank goes, whatever the others do
        ranks.leave(raised)
        raise
    try:
        outcomes = ranks.all_gather(told)
    except GangBrokenError as broken:
        if error is not None:  # it came first, and says more
            raise error from broken
        raise
    failed = next((outcome for outcome in outcomes if outcome[:1] == _FAILED), None)
    if failed is None and result is not None:
        return result[0], [outcome[1:] for outcome in outcomes]
    if error is not None and ranks.world_size == 1:
        raise error
    raise from_wire(json.loads((failed or told)[1:])) from error


def together(ranks: Ranks, step: Callable[[], T]) -> T:
    """Run `step` on every rank as `run_all` does, without a message."""
    return run_all(ranks, lambda: (step(), b""))[0]


def on_rank_zero(ranks: Ranks, step: Callable[[], bytes]) -> bytes:
    """Run `step` on rank 0 only; every rank gets its result, or its error.

    A small result travels with the outcome; a large one, which an exchange would carry once for
    each rank, is broadcast.
    """

    def run() -> tuple[bytes | None, bytes]:
        if ranks.rank != 0:
            return None, b""
        result = step()
        return result, _HERE + result if len(result) <= _SMALL else b""

    result, messages = run_all(ranks, run)
    if messages[0][:1] == _HERE:
        return messages[0][1:]
    return ranks.broadcast(result)


def _located(error: BaseException, ranks: Ranks) -> dict[str, object]:
    wire = to_wire(error)
    if ranks.world_size > 1:
        if wire["type"] in ("ValueError", "TypeError"):
            wire["message"] = f"{wire['message']} (on rank {ranks.rank})"
        else:
            wire.setdefault("rank", ranks.rank)
    return wire
