"""Who am I in the gang, and how the gang speaks. The room that touches torch.distributed.

No collective here is ever called from a background thread, and none moves pickled objects: what
travels is bytes (`torch.distributed`'s object collectives unpickle what they receive).

Promise 6, no rank hangs: whatever may fail on one rank runs inside `together`, which ends with an
exchange of outcomes, so that all ranks raise the same error instead of waiting for one that left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from ray_imuckpt.errors import ImuckptError, from_wire, to_wire

T = TypeVar("T")

_BROADCAST_BYTES = 256 * 1024 * 1024


class Ranks(Protocol):
    """A gang of processes seen from one of them. Every method but `stale` is a collective."""

    rank: int
    world_size: int

    def stale(self) -> bool:
        """Whether the gang has changed since: then this object must not be used again."""

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


class TorchRanks:
    """The default process group, spoken to through a gloo group of its own.

    A group of our own, because NCCL moves GPU memory only, and because our messages must not mix
    with the collectives of the user's backward pass. Making it is a collective.

    Args:
        timeout: How long a collective waits for a rank that does not come. A rank whose process
            died is noticed at once; a long one is rank 0 waiting for a slow storage.
    """

    def __init__(self, timeout: timedelta = timedelta(hours=6)) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._world = dist.group.WORLD
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def stale(self) -> bool:
        """See `Ranks.stale`."""
        return dist.group.WORLD is not self._world

    def all_gather(self, payload: bytes) -> list[bytes]:
        """See `Ranks.all_gather`."""
        sizes = self._sizes(payload)
        if not any(sizes):
            return [b""] * self.world_size
        mine = _padded(payload, max(sizes))
        theirs = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(theirs, mine, group=self._group)
        return [_bytes(tensor, size) for tensor, size in zip(theirs, sizes, strict=True)]

    def gather(self, payload: bytes) -> list[bytes]:
        """See `Ranks.gather`."""
        sizes = self._sizes(payload)
        mine = _padded(payload, max(sizes))
        theirs = [torch.empty_like(mine) for _ in sizes] if self.rank == 0 else None
        dist.gather(mine, theirs, group=self._group, group_dst=0)
        return [_bytes(tensor, size) for tensor, size in zip(theirs or [], sizes, strict=False)]

    def broadcast(self, payload: bytes | None) -> bytes:
        """See `Ranks.broadcast`."""
        size = torch.tensor([len(payload or b"")], dtype=torch.int64, device="cpu")
        dist.broadcast(size, group=self._group, group_src=0)
        buffer = _padded(payload or b"", int(size.item()))
        self.broadcast_into(buffer)
        return _bytes(buffer, int(size.item()))

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """See `Ranks.broadcast_into`."""
        for piece in torch.split(buffer, _BROADCAST_BYTES):
            dist.broadcast(piece, group=self._group, group_src=0)

    def _sizes(self, payload: bytes) -> list[int]:
        sizes = torch.empty(self.world_size, dtype=torch.int64, device="cpu")
        mine = torch.tensor([len(payload)], dtype=torch.int64, device="cpu")
        dist.all_gather_into_tensor(sizes, mine, group=self._group)
        return [int(size) for size in sizes]


def current() -> Ranks:
    """The gang of this process: torch.distributed's, or a gang of one.

    Raises:
        ImuckptError: This process was started as one of several by a launcher, but the process
            group was not initialized: every process would write the same checkpoint.
    """
    if dist.is_available() and dist.is_initialized():
        return TorchRanks() if dist.get_world_size() > 1 else SoloRanks()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ImuckptError(
            f"A launcher started {os.environ['WORLD_SIZE']} processes, but torch.distributed is "
            "not initialized, so this process cannot find the others.",
            hint="Call torch.distributed.init_process_group() before the first use.",
        )
    return SoloRanks()


def together(ranks: Ranks, step: Callable[[], T]) -> T:
    """Run `step` on every rank; if it raised on any, raise that error on all.

    The error of the lowest failing rank wins and carries that rank's number. `step` must not call
    a collective unless all its failures precede it.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = step()
    except Exception as raised:  # noqa: BLE001 - every failure is told to the others
        error = raised
    outcome = b"" if error is None else json.dumps(_located(error, ranks), default=str).encode()
    outcomes = ranks.all_gather(outcome)
    failed = next((rank for rank, told in enumerate(outcomes) if told), None)
    if failed is None:
        return result  # type: ignore[return-value]
    if error is not None and ranks.world_size == 1:
        raise error
    raise from_wire(json.loads(outcomes[failed])) from error


def on_rank_zero(ranks: Ranks, step: Callable[[], bytes]) -> bytes:
    """Run `step` on rank 0 only; every rank gets its result, or its error."""
    result = together(ranks, lambda: step() if ranks.rank == 0 else None)
    return ranks.broadcast(result)


def _located(error: Exception, ranks: Ranks) -> dict[str, object]:
    wire = to_wire(error)
    if ranks.world_size > 1:
        if wire["type"] in ("ValueError", "TypeError"):
            wire["message"] = f"{wire['message']} (on rank {ranks.rank})"
        else:
            wire.setdefault("rank", ranks.rank)
    return wire


def _padded(payload: bytes, size: int) -> torch.Tensor:
    buffer = torch.zeros(size, dtype=torch.uint8, device="cpu")
    if payload:
        buffer[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return buffer


def _bytes(tensor: torch.Tensor, size: int) -> bytes:
    return tensor[:size].numpy().tobytes()
