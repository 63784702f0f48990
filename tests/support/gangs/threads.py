"""A gang whose ranks are threads of one process: a transport through memory, which counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch

from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone
from support.waiting import PATIENCE

T = TypeVar("T")


class Crowd:
    """The place where ranks meet that are threads.

    Attributes:
        world_size: How many they are.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = Barrier(world_size, timeout=PATIENCE)
        self._brought: list[Any] = [None] * world_size

    def bring(self, rank: int, mine: Any, take: Callable[[list[Any]], T]) -> T:
        """Return what is taken out of that which all ranks have brought; all come at once."""
        self._brought[rank] = mine
        self._barrier.wait()
        try:
            return take(self._brought)
        finally:
            self._barrier.wait()

    def play(self, part: Callable[[Gang, Member], T]) -> list[T]:
        """Let each rank play its part, and return what all of them return."""
        members = [Member(self, rank) for rank in range(self.world_size)]
        with ThreadPoolExecutor(self.world_size) as pool:
            return [*pool.map(lambda member: part(Gang(member), member), members)]


class Member(Alone):
    """The transport of one rank.

    Attributes:
        received: Bytes that have come from other ranks, but for those of `all_gather`.
        meetings: How often it has met the others to pass bytes on.
    """

    def __init__(self, crowd: Crowd, rank: int) -> None:
        self.rank, self.world_size = rank, crowd.world_size
        self.received = self.meetings = 0
        self._crowd = crowd

    def all_gather(self, payload: bytes) -> list[bytes]:
        return self._crowd.bring(self.rank, payload, list)

    def broadcast_each(self, parts: Sequence[tuple[int, torch.Tensor]]) -> None:
        def take(brought: list[Any]) -> None:
            for number, (rank, part) in enumerate(parts):
                if rank != self.rank:
                    part.copy_(brought[rank][number][1])
                    self.received += len(part)

        self.meetings += 1
        self._crowd.bring(self.rank, parts, take)

    def all_to_all(
        self,
        outgoing: torch.Tensor,
        sent: Sequence[int],
        incoming: torch.Tensor,
        received: Sequence[int],
    ) -> None:
        def take(brought: list[Any]) -> None:
            rows = torch.split(incoming, [*received])
            for row, theirs in zip(rows, brought, strict=True):
                row.copy_(theirs[self.rank])
                self.received += len(row)

        self.meetings += 1
        self._crowd.bring(self.rank, torch.split(outgoing, [*sent]), take)
