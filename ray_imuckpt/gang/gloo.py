"""The ranks of torch.distributed's default group, spoken to through a gloo group of its own.

Promise 14, no rank waits in vain: every meeting has a deadline, whoever waits says for whom, and
what breaks a gang (a rank that died, that did not come in time, that left in the middle) is one
error on every rank.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ray_imuckpt import units
from ray_imuckpt.errors import GangBrokenError
from ray_imuckpt.gang.blocks import from_block, padded, to_block, unpadded
from ray_imuckpt.gang.watch import Register, Store, Watch, ask

_BROADCAST_BYTES = 256 * 1024 * 1024
_TICK = 1.0  # seconds of waiting between looks at who has come


class GlooTransport:
    """The default process group; making it is a collective. See `ray_imuckpt.gang.transport`.

    It has a gloo group of its own, because NCCL moves GPU memory only, and because our messages
    must not mix with the collectives of the user's backward pass.

    Args:
        timeout: How long a meeting waits for a rank that does not come; the same on all ranks. A
            rank whose process has ended is noticed at once.

    Raises:
        GangBrokenError: Not all ranks came.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._world = dist.group.WORLD
        self._timeout = timeout.total_seconds()
        self._tick = min(_TICK, self._timeout / 4)
        self._register = Register(_store(self._world, self.rank), self.rank, self.world_size)
        self._meeting = 0
        self._broken: GangBrokenError | None = None
        self._group: Any = None
        self._meet(lambda: self._make(timeout))

    def _make(self, timeout: timedelta) -> None:
        with Watch(self._register, self._meeting, self._tick):
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def stale(self) -> bool:
        """Return whether the default process group is another one; see `Transport.stale`."""
        return dist.group.WORLD is not self._world

    def close(self) -> None:
        """Let the group go, once its threads have done with the last collective; no collective.

        They outlive it by a moment, and drop its tensors then. A thread of torch that does so while
        the interpreter shuts down is ended within C++, which aborts the process.
        """
        group, self._group = self._group, None
        self._broken = GangBrokenError("The gang was left: its process ends.", rank=self.rank)
        if group is not None and not self.stale():
            with contextlib.suppress(ValueError):  # destroyed by someone else
                dist.destroy_process_group(group)
        # Of a default group that was destroyed this may be the last reference.
        self._world = None
        self._register = Register(None, self.rank, self.world_size)

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all ranks; see `Transport.all_gather`."""
        sizes, small = self._exchange(payload)
        if small is not None:
            return small
        buffer = padded(payload, max(sizes))
        buffers = [torch.empty_like(buffer) for _ in sizes]
        self._do(lambda: dist.all_gather(buffers, buffer, group=self._group, async_op=True))
        return [unpadded(tensor, size) for tensor, size in zip(buffers, sizes, strict=True)]

    def gather(self, payload: bytes, sizes: Sequence[int]) -> list[bytes]:
        """Return the payloads of all ranks on rank 0; see `Transport.gather`."""
        buffer = padded(payload, max(sizes))
        buffers = [torch.empty_like(buffer) for _ in sizes] if self.rank == 0 else None
        self._do(
            lambda: dist.gather(buffer, buffers, group=self._group, group_dst=0, async_op=True)
        )
        return [unpadded(tensor, size) for tensor, size in zip(buffers or [], sizes, strict=False)]

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return rank 0's payload; see `Transport.broadcast`."""
        block = to_block(payload or b"")
        self.broadcast_into(block)
        size, small = from_block(block)
        if small is not None:
            return small
        buffer = padded(payload or b"", size)
        self.broadcast_into(buffer)
        return unpadded(buffer, size)

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """Fill the buffer with rank 0's bytes; see `Transport.broadcast_into`."""
        for piece in torch.split(buffer, _BROADCAST_BYTES):
            self.broadcast_each([(0, piece)])

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Fill each tensor with its rank's bytes; see `Transport.broadcast_each`."""

        def begin() -> list[Any]:
            return [
                dist.broadcast(part, group=self._group, group_src=rank, async_op=True)
                for rank, part in parts
            ]

        self._meet(lambda: [*map(self._wait, begin())])

    def all_to_all(
        self,
        outgoing: torch.Tensor,
        sent: Sequence[int],
        incoming: torch.Tensor,
        received: Sequence[int],
    ) -> None:
        """Send to each rank bytes of its own; see `Transport.all_to_all`."""
        sizes = [*received], [*sent]
        self._do(
            lambda: dist.all_to_all_single(
                incoming, outgoing, *sizes, group=self._group, async_op=True
            )
        )

    def _exchange(self, payload: bytes) -> tuple[list[int], list[bytes] | None]:
        """Return the sizes of all payloads and, where all are small, the payloads."""
        block = to_block(payload)
        blocks = [torch.empty_like(block) for _ in range(self.world_size)]
        self._do(lambda: dist.all_gather(blocks, block, group=self._group, async_op=True))
        unpacked = [from_block(block) for block in blocks]
        small = [payload for _, payload in unpacked if payload is not None]
        return [size for size, _ in unpacked], small if len(small) == len(unpacked) else None

    def leave(self, error: BaseException) -> None:
        """Let the others know that this rank has gone; see `Transport.leave`."""
        self._broken = GangBrokenError(
            f"Rank {self.rank} left a meeting of the ranks: {type(error).__name__}.",
            rank=self.rank,
            hint=_RESTART,
        )
        self._announce(self._broken)

    def _do(self, begin: Callable[[], Any]) -> None:
        """Run one collective to its end."""
        self._meet(lambda: self._wait(begin()))

    def _meet(self, step: Callable[[], object]) -> None:
        """Run a step that waits for the other ranks; whatever ends it early ends the gang."""
        if self._broken is not None:
            raise self._broken
        self._meeting += 1
        began = time.monotonic()
        try:
            step()
        except GangBrokenError as broken:
            self._broken = broken
            raise
        except Exception as error:  # of whatever kind: the ranks are not in step any more
            waited = time.monotonic() - began
            self._broken = self._why(error, waited)
            raise self._broken from error
        except BaseException as error:  # an interrupt: nor are they then
            self.leave(error)
            raise

    def _wait(self, work: Any) -> None:
        """Wait for a collective in pieces: then a signal is heard, and a rank that has left."""
        # A rank whose neighbours live may not notice that the meeting has failed on another: so it
        # writes down that it is here well before that other one, a tick later, looks who is.
        soon = self._tick / 2
        if _ended(work, soon):
            return
        with Watch(self._register, self._meeting, self._tick, soon) as watch:
            while not _ended(work, self._tick):
                if watch.left is not None:
                    raise self._error_of(watch.left)

    def _why(self, error: Exception, waited: float) -> GangBrokenError:
        """Return what a collective's error means, and let the others know."""
        late = waited >= 0.9 * self._timeout
        missing, left = self._missing(late=late)
        if left is not None:
            return self._error_of(left)
        whom = units.ranks(missing) if missing else "another rank"
        if late:
            broken = GangBrokenError(
                f"The ranks waited {self._timeout:g} s for {whom}, in vain.",
                rank=self.rank,
                hint=f"Find out what {whom} did instead: every rank must make the same calls in "
                "the same order (none inside `if rank == 0`). If it may take so long, pass "
                f"Checkpointer(..., timeout=<seconds>). {_RESTART}",
            )
        else:
            some = "one or more of " if len(missing) > 1 else ""  # or they will notice later
            broken = GangBrokenError(
                f"The connection to {some}{whom} was lost: a process has ended, or the network "
                f"failed ({_shortened(error)}).",
                rank=self.rank,
                hint=f"Look for the reason in the log of {whom}. {_RESTART}",
            )
        self._announce(broken)
        return broken

    def _missing(self, *, late: bool) -> tuple[list[int], str | None]:
        """Return which ranks are missing as far as is known, and what another has announced."""
        pair = self.world_size == 2

        def look() -> tuple[list[int] | None, str | None]:
            if (left := self._register.left()) is not None:
                return None, left
            self._register.live_on()
            if not late and not pair:  # the others may be about to write down that they are here
                time.sleep(self._tick)
            return self._register.missing(self._meeting), self._register.left()

        missing, left = ask(look) or (None, None)
        return [1 - self.rank] if pair else missing or [], left

    def _announce(self, error: GangBrokenError) -> None:
        ask(lambda: self._register.leave(json.dumps([error.message, error.hint])))

    def _error_of(self, left: str) -> GangBrokenError:
        """Return the error that another rank has announced."""
        message, hint = json.loads(left)
        return GangBrokenError(message, rank=self.rank, hint=hint)


_RESTART = (
    'Start the gang again; with continue_from="last" it goes on from the last committed checkpoint.'
)


def _store(world: Any, rank: int) -> Store | None:
    """Return a store for one more gang, in that which the group was made with, if there is one.

    It is a connection of our own. Each rank counts the gangs that it has begun to make; all make
    them in the same order, and who came to an earlier one need not have come to this.
    """
    # Not every torch has the method, not every group a store: then nobody knows who has come.
    try:
        shared = dist.PrefixStore("imuckpt", world.get_group_store().clone())
        store: Store = dist.PrefixStore(f"{shared.add(f'made-{rank}', 1)}", shared)
    except (AttributeError, RuntimeError):
        return None
    return store


def _ended(work: Any, seconds: float) -> bool:
    """Wait so long for a collective; return whether it has ended, and raise its error."""
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # it ended just now, or with an error, which this raises
    return True


def _shortened(error: Exception) -> str:
    """Return what gloo says, without the line of its source and without its advice."""
    return re.sub(r"^\[\S+\] ", "", str(error)).split("\n")[0].split(". ")[0]
