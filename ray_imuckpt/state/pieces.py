"""The piece of a sharded tensor that is on this rank. Touches torch.distributed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ray_imuckpt.encoding.tensors import Piece
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.state.sharding import is_sharded


class Share(NamedTuple):
    """The part of a tensor that is on this rank.

    Attributes:
        local: Its elements, in the memory of the tensor itself; without any where this rank holds
            nothing of it.
        piece: Where they belong in the whole; ``None``: they are the whole.
    """

    local: torch.Tensor
    piece: Piece | None


def share_of(tensor: torch.Tensor) -> Share:
    """Return what of a tensor is on this rank; no collective.

    Raises:
        UnsupportedStateError: It is a sum that is spread over the ranks (``Partial``), or its part
            here is not one rectangular piece.
    """
    if not is_sharded(tensor):
        return Share(tensor, None)
    sharded: Any = tensor
    local = sharded.to_local()
    if all(placement.is_replicate() for placement in sharded.placements):
        return Share(local, None)
    if sharded.device_mesh.get_coordinate() is None or not local.numel():
        return Share(local.new_empty(0), Piece((0,) * tensor.dim(), tuple(tensor.shape)))
    # The protocol by which torch.distributed.checkpoint asks for the same; it knows every kind of
    # placement, of which not all are public. tests/support/gangs/owners.py compares its answers.
    try:
        (chunk,) = sharded.__create_chunk_list__()
    except (AttributeError, RuntimeError, ValueError) as error:
        raise UnsupportedStateError(
            f"What this rank holds of a tensor that is placed as {sharded.placements} is not one "
            f"rectangular piece of it ({error}).",
            hint="Redistribute it before it is saved: tensor.redistribute(placements=[Shard(0)]).",
        ) from error
    return Share(local, Piece(tuple(chunk.offsets), tuple(tensor.shape)))


def place_in_mesh(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the coordinates that tell which piece of a sharded tensor a rank holds.

    Ranks with equal ones hold the same piece, whichever mesh of the same shape they are in.

    Returns:
        A number for each dimension of the mesh that the tensor is sharded along; ``None`` where
        this rank is in no part of the mesh.
    """
    sharded: Any = tensor
    coordinate = sharded.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    return tuple(
        at
        for at, placement in zip(coordinate, sharded.placements, strict=True)
        if not placement.is_replicate()
    )


def from_share(local: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is placed as `live` is, of which `local` is the part on this rank."""
    if not is_sharded(live):
        return local
    from torch.distributed.tensor import DTensor

    sharded: Any = live
    tensor: torch.Tensor = DTensor.from_local(
        local,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=live.shape,
        stride=live.stride(),
    )
    return tensor
