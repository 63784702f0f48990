"""Which piece of a sharded tensor each rank holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ray_imuckpt import Checkpointer, UnsupportedStateError
from ray_imuckpt.state import pieces
from support.gangs.common import error_of, full

PLACEMENTS = (
    ((2,), [Shard(0)]),
    ((2,), [Shard(1)]),
    ((2,), [Replicate()]),
    ((1, 2), [Replicate(), Shard(0)]),
    ((2, 1), [Shard(1), Shard(0)]),
    ((1, 2), [Shard(0), Shard(0)]),
)


def every_rank_knows_its_piece(directory: Path, rank: int) -> None:
    """What a rank is said to hold is that part of the whole, also of uneven and empty ones."""
    for mesh_shape, placements in PLACEMENTS:
        mesh = init_device_mesh("cpu", mesh_shape)
        for shape in ((4, 6), (5, 3), (1, 1), (3, 2, 2)):
            whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
            sharded = distribute_tensor(whole, mesh, placements)
            local, piece = pieces.share_of(sharded)
            if piece is None:
                assert torch.equal(local, whole)
            elif local.numel():
                ends = [b + n for b, n in zip(piece.offset, local.shape, strict=True)]
                part = tuple(slice(b, e) for b, e in zip(piece.offset, ends, strict=True))
                assert torch.equal(local, whole[part])
                assert piece.shape == shape
            again = pieces.from_share(sharded.to_local().clone(), sharded)
            assert again.placements == sharded.placements  # type: ignore[attr-defined]
            assert torch.equal(full(again), whole)
    places = pieces.place_in_mesh(sharded)
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, places)
    assert everyone == [(0, 0), (0, 1)]


def each_piece_is_written_by_one_rank(directory: Path, rank: int) -> None:
    """Where ranks do not agree on it; tensors that are cut alike are looked at once."""
    owned, looks = pieces.Owned(), 0
    real = pieces.share_of

    def share_of(tensor: torch.Tensor) -> pieces.Share:
        nonlocal looks
        looks += 1
        return real(tensor)

    pieces.share_of = share_of
    for mesh_shape, placements in PLACEMENTS:
        mesh = init_device_mesh("cpu", mesh_shape)
        for value in range(1, 4):
            whole = torch.full((5, 3), float(value))
            share = owned.share(distribute_tensor(whole, mesh, placements))
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, share)
            written = torch.zeros(5, 3)
            for local, piece in filter(None, everyone):
                offset = (0, 0) if piece is None else piece.offset
                part = tuple(slice(b, b + n) for b, n in zip(offset, local.shape, strict=True))
                written[part] += local
            assert torch.equal(written, whole)
    pieces.share_of = real
    assert looks == len(PLACEMENTS)


def a_sum_that_is_spread_is_refused(directory: Path, rank: int) -> None:
    """``Partial`` is no state: the error says what to do."""
    from torch.distributed.tensor import DTensor, Partial

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    spread = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    keeper: Any = SimpleNamespace(state_dict=lambda: {"sum": spread}, load_state_dict=print)
    save = partial(Checkpointer(directory).checkpoint, 1, model=nn.Module())
    for call, told in (
        (lambda: pieces.share_of(spread), ""),
        (lambda: save(per_rank={"keeper": keeper}), "ranks.0.per_rank.keeper.sum: "),
    ):
        error = error_of(call)
        assert isinstance(error, UnsupportedStateError)
        assert "redistribute" in str(error)
        assert told in str(error)
