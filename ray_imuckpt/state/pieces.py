"""The piece of a sharded tensor that is on this rank. Touches torch.distributed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ray_imuckpt.encoding.tensors import Piece, Share, TensorInfo, disjoint, takes
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.state.sharding import detached, is_sharded, part_here

__all__ = [
    "Owned",
    "Share",
    "from_share",
    "new_share",
    "place_in_mesh",
    "share_of",
    "taking",
    "without_overlaps",
]

K = TypeVar("K")


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


class Owned:
    """The pieces that this rank writes of sharded tensors where the ranks do not agree on that.

    Each piece is written by the first of those in its mesh that hold it. Thousands of tensors are
    on the same few meshes and cut in the same few ways: each is looked at once.
    """

    def __init__(self) -> None:
        self._lowest: dict[Any, int] = {}
        self._shares: dict[Any, tuple[bool, Piece | None]] = {}

    def lowest_rank(self, tensor: torch.Tensor) -> int:
        """Return the lowest of the ranks that a sharded tensor is spread over."""
        sharded: Any = tensor
        mesh = sharded.device_mesh
        if mesh not in self._lowest:
            self._lowest[mesh] = int(mesh.mesh.min())
        return self._lowest[mesh]

    def share(self, tensor: torch.Tensor) -> Share | None:
        """Return what of a sharded tensor this rank writes; ``None`` where that is nothing.

        Raises:
            UnsupportedStateError: As for `share_of`.
        """
        sharded: Any = tensor
        cut = (sharded.device_mesh, sharded.placements, tensor.shape)
        if cut not in self._shares:
            self._shares[cut] = self._look(sharded)
        writes, piece = self._shares[cut]
        if not writes:
            return None
        if not tensor.numel():
            return Share(torch.empty(tensor.shape, dtype=tensor.dtype), None)
        return Share(sharded.to_local(), piece)

    def _look(self, sharded: Any) -> tuple[bool, Piece | None]:
        """Return whether this rank writes a part of such a tensor, and which; ``None``: all."""
        coordinate = sharded.device_mesh.get_coordinate()
        if coordinate is None:
            return False, None
        if not sharded.numel():
            return not any(coordinate), None
        local, piece = share_of(sharded)
        places = zip(coordinate, sharded.placements, strict=True)
        if not local.numel() or any(at and p.is_replicate() for at, p in places):
            return False, None
        return True, None if local.shape == sharded.shape else piece


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


def taking(live: torch.Tensor, stored: TensorInfo) -> torch.Tensor | Share | None:
    """Return what takes this rank's part of a stored tensor that is to be put into `live`.

    Returns:
        `live`, if the bytes may be put straight into its part here; else host memory for that part;
        ``None`` where it is not sharded, or not as the stored one could be.
    """
    if not is_sharded(live) or live.shape != stored.shape:
        return None
    try:
        local, piece = share_of(detached(live))
    except UnsupportedStateError:
        return None
    if not local.numel() or takes(local, stored.dtype, tuple(local.shape)):
        return live
    return Share(torch.empty(local.shape, dtype=stored.dtype, device="cpu"), piece)


def new_share(like: torch.Tensor, stored: TensorInfo) -> torch.Tensor | None:
    """Return a new tensor that is placed as `like` is, on its device, for a stored one's bytes.

    Returns:
        ``None`` as for `taking`.
    """
    if taking(like, stored) is None:
        return None
    part = part_here(like)
    return from_share(torch.empty(part.shape, dtype=stored.dtype, device=part.device), like)


def without_overlaps(memory: Mapping[K, torch.Tensor | Share]) -> dict[K, torch.Tensor | Share]:
    """Return what takes the bytes of sharded tensors into memory that nothing before it has."""
    parts = {
        key: tensor.local if isinstance(tensor, Share) else part_here(tensor)
        for key, tensor in memory.items()
    }
    alone = disjoint({key: part for key, part in parts.items() if part.numel()})
    return {key: memory[key] for key, part in parts.items() if key in alone or not part.numel()}
