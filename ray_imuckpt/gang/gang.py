"""The gang: who this process is in it, and its meetings.

No collective of ours is ever called from a background thread.

Promise 6, no rank hangs: whatever may fail on one rank runs inside `Gang.run_all` or one of its
kin, which end with an exchange of outcomes, so that all ranks raise the same error instead of
waiting for one that left. Outcome and message travel together: one exchange for each meeting.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ray_imuckpt.errors import GangBrokenError, ImuckptError, from_wire, to_wire
from ray_imuckpt.gang.gloo import GlooTransport
from ray_imuckpt.gang.transport import Alone, Transport

T = TypeVar("T")

_DONE, _FAILED = b".", b"!"
_HERE = b"r"
_SMALL = 400  # bytes of a result that fit into the first block of an exchange (`blocks`)


class Gang:
    """The processes that train together, seen from one of them; all its methods are collectives.

    `stale` and `close` are the exceptions: they ask nobody.

    Args:
        transport: How bytes travel between them; left out: this process is the whole gang.
    """

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport: Transport = transport or Alone()

    @property
    def rank(self) -> int:
        """Return the number of this process."""
        return self._transport.rank

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self._transport.world_size

    def stale(self) -> bool:
        """Return whether the gang has changed since: then this object must not be used again."""
        return self._transport.stale()

    def close(self) -> None:
        """Let the sockets and threads of the gang go; it must not be used again."""
        self._transport.close()

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all ranks, in rank order, on every rank."""
        return self._transport.all_gather(payload)

    def gather(self, payload: bytes, sizes: Sequence[int]) -> list[bytes]:
        """Return the payloads of all ranks, in rank order, on rank 0; [] elsewhere.

        Args:
            payload: This rank's.
            sizes: How many bytes each rank's has; every rank knows them from a meeting before.
        """
        return self._transport.gather(payload, sizes)

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return rank 0's payload on every rank; the other ranks pass ``None``."""
        return self._transport.broadcast(payload)

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """Fill the one-dimensional uint8 CPU tensor `buffer` with rank 0's bytes, in place."""
        self._transport.broadcast_into(buffer)

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Fill each one-dimensional uint8 CPU tensor with its rank's bytes, all at the same time.

        Args:
            parts: The number of a rank, and what it sends; the same ranks and sizes everywhere.
        """
        self._transport.broadcast_each(parts)

    def all_to_all(
        self,
        outgoing: torch.Tensor,
        sent: Sequence[int],
        incoming: torch.Tensor,
        received: Sequence[int],
    ) -> None:
        """Send to each rank bytes of its own, and receive such from each.

        Args:
            outgoing: One-dimensional, uint8, on the CPU: what goes to each rank, in their order.
            sent: How many bytes that is, by rank.
            incoming: Memory of the same kind for what comes from each rank; it is filled.
            received: How many bytes that is, by rank.
        """
        self._transport.all_to_all(outgoing, sent, incoming, received)

    def run_all(self, step: Callable[[], T]) -> T:
        """Run `step` on every rank; if it raised on any, raise that on all.

        The error of the lowest failing rank wins and carries that rank's number. `step` must not
        call a collective unless all its failures precede it.

        Returns:
            What `step` returned on this rank.
        """
        return self.exchange(lambda: (step(), b""))[0]

    def exchange(self, step: Callable[[], tuple[T, bytes]]) -> tuple[T, list[bytes]]:
        """Run `step` on every rank as `run_all` does, and send its message to all ranks.

        Args:
            step: Returns what this rank goes on with, and a message to all ranks.

        Returns:
            What this rank goes on with, and the messages of all ranks in their order.
        """
        error: Exception | None = None
        result: tuple[T, bytes] | None = None
        try:
            result = step()
            outcome = _DONE + result[1]
        except Exception as raised:  # noqa: BLE001 - every failure is sent to the others
            error = raised
            outcome = _FAILED + json.dumps(self._located(error), default=str).encode()
        except BaseException as raised:  # an interrupt: this rank goes, whatever the others do
            self._transport.leave(raised)
            raise
        try:
            outcomes = self.all_gather(outcome)
        except GangBrokenError as broken:
            if error is not None:  # it came first, and says more
                raise error from broken
            raise
        failed = next((theirs for theirs in outcomes if theirs[:1] == _FAILED), None)
        if failed is None and result is not None:
            return result[0], [theirs[1:] for theirs in outcomes]
        if error is not None and self.world_size == 1:
            raise error
        raise from_wire(json.loads((failed or outcome)[1:])) from error

    def agree(
        self, step: Callable[[], tuple[T, bytes]], differ: Callable[[T, list[bytes]], None]
    ) -> T:
        """Run `step` on every rank as `exchange` does, and make sure that all messages are equal.

        Args:
            step: As for `exchange`.
            differ: Called on every rank where they are not, with what this rank goes on with and
                the messages of all; it may call collectives, and raises unless that may be.

        Returns:
            What `step` returned on this rank, beside the message.
        """
        result, messages = self.exchange(step)
        if len(set(messages)) > 1:
            differ(result, messages)
        return result

    def run_on_zero(self, step: Callable[[], bytes]) -> bytes:
        """Run `step` on rank 0 only; every rank gets its result, or its error.

        A small result travels with the outcome; of a large one, which an exchange would carry once
        for each rank, only the size does, and it is broadcast.
        """

        def run() -> tuple[bytes, bytes]:
            if self.rank != 0:
                return b"", b""
            result = step()
            return result, _HERE + result if len(result) <= _SMALL else str(len(result)).encode()

        result, messages = self.exchange(run)
        if messages[0][:1] == _HERE:
            return messages[0][1:]
        if self.world_size == 1:
            return result
        buffer = bytearray(result or int(messages[0]))
        self.broadcast_into(torch.frombuffer(buffer, dtype=torch.uint8))
        return bytes(buffer)

    def _located(self, error: BaseException) -> dict[str, object]:
        wire = to_wire(error)
        if self.world_size > 1:
            if wire["type"] in ("ValueError", "TypeError"):
                wire["message"] = f"{wire['message']} (on rank {self.rank})"
            else:
                wire.setdefault("rank", self.rank)
        return wire


# One group for all Checkpointers of a process: each has threads, and sockets to every rank, until
# it is closed.
_MADE: dict[timedelta, Gang] = {}


@atexit.register
def _close_all() -> None:
    while _MADE:
        _MADE.popitem()[1].close()


def current(timeout: timedelta) -> Gang:
    """Return the gang of this process: torch.distributed's, or a gang of one.

    Args:
        timeout: How long a meeting waits for a rank that does not come; the same on all ranks.

    Raises:
        ImuckptError: This process was started as one of several by a launcher, but the process
            group was not initialized: every process would write the same checkpoint.
        GangBrokenError: Not all ranks came.
    """
    if dist.is_available() and dist.is_initialized():
        return _shared(timeout) if dist.get_world_size() > 1 else Gang()
    started = os.environ.get("WORLD_SIZE", "")
    if started.strip().isdecimal() and int(started) > 1:
        raise ImuckptError(
            f"A launcher started {started} processes, but torch.distributed is not initialized, so "
            "that this process cannot find the others.",
            hint="Call torch.distributed.init_process_group() before the first use, and "
            "destroy_process_group() after the last wait().",
        )
    return Gang()


def own_rank() -> int:
    """Return the rank of this process, 0 where it is alone; nobody meets."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _shared(timeout: timedelta) -> Gang:
    for made in [key for key, gang in _MADE.items() if gang.stale()]:
        _MADE.pop(made).close()
    if timeout not in _MADE:
        _MADE[timeout] = Gang(GlooTransport(timeout))
    return _MADE[timeout]
