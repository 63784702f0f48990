"""The transport of bytes between the processes of a gang: the seam below `ray_imuckpt.gang.Gang`.

What travels is bytes, never pickled objects: `torch.distributed`'s object collectives unpickle what
they receive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist


class Transport(Protocol):
    """The processes of a gang seen from one of them.

    All methods are collectives, except `stale`, `close` and `leave`.

    Attributes:
        rank: The number of this process.
        world_size: How many there are.
    """

    rank: int
    world_size: int

    def stale(self) -> bool:
        """Return whether the gang has changed since: then this object must not be used again."""

    def close(self) -> None:
        """Let sockets and threads go; the object must not be used again."""

    def leave(self, error: BaseException) -> None:
        """Let the others know that this rank does not come to their meeting, for this reason."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all ranks, in rank order, on every rank."""

    def gather(self, payload: bytes, sizes: Sequence[int]) -> list[bytes]:
        """Return the payloads of all ranks, of these sizes, on rank 0; [] elsewhere."""

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return rank 0's payload on every rank; the other ranks pass ``None``."""

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """Fill the one-dimensional uint8 CPU tensor `buffer` with rank 0's bytes, in place."""

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Fill each such tensor with the bytes of the rank beside it, all at the same time."""

    def all_to_all(
        self,
        outgoing: torch.Tensor,
        sent: Sequence[int],
        incoming: torch.Tensor,
        received: Sequence[int],
    ) -> None:
        """Send to each rank its bytes of one such tensor, and fill another; see `Gang`."""


class Alone:
    """The transport of a gang of one."""

    rank = 0
    world_size = 1

    def stale(self) -> bool:
        """Return whether a process group has been made since; see `Transport.stale`."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def close(self) -> None:
        """Do nothing: there are no sockets."""

    def leave(self, error: BaseException) -> None:
        """Do nothing: there is nobody to let know."""

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the one payload."""
        return [payload]

    def gather(self, payload: bytes, sizes: Sequence[int]) -> list[bytes]:  # noqa: ARG002 - as above
        """Return the one payload."""
        return [payload]

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return the payload."""
        return payload or b""

    def broadcast_into(self, buffer: torch.Tensor) -> None:
        """Do nothing: what rank 0 holds is there."""

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Do nothing: what this rank holds is there."""

    def all_to_all(
        self,
        outgoing: torch.Tensor,
        sent: Sequence[int],  # noqa: ARG002 - as above
        incoming: torch.Tensor,
        received: Sequence[int],  # noqa: ARG002 - as above
    ) -> None:
        """Copy what this rank sends to itself."""
        incoming.copy_(outgoing)
