"""Tensors for the bytes of a file: room to read into, and what is made of it."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch

from ray_imuckpt.encoding.tensors.header import Header, Piece, TensorInfo, TensorKey
from ray_imuckpt.encoding.tensors.memory import flat
from ray_imuckpt.encoding.tensors.strides import laid_out
from ray_imuckpt.threads.parallel import uncollected


def tensor_at(data: bytes, info: TensorInfo) -> torch.Tensor:
    """Return the tensor that `info` describes, as a copy out of a file's bytes."""
    tensor = torch.empty(info.shape, dtype=info.dtype, device="cpu")
    flat(tensor).numpy().data[:] = memoryview(data)[info.begin : info.end]
    return tensor if info.strides is None else laid_out(tensor, info.strides)


@uncollected
def room(header: Header, live: Mapping[TensorKey, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a tensor for each stored one, nothing in it yet; tied names share one.

    Args:
        header: The file's, or that of all files of a part.
        live: The tensors that take the bytes of stored ones. For the others there will be new host
            tensors.
    """
    made: dict[str, torch.Tensor] = {}
    for name, info in header.tensors.items():
        tensor = live.get(info.key)
        if tensor is None:
            tensor = made.get(info.key[1])  # tied names come behind the one that is stored
        if tensor is None:
            tensor = torch.empty(info.shape, dtype=info.dtype, device="cpu")
        made[name] = tensor
    return made


def lay_out(
    header: Header, filled: dict[str, torch.Tensor], but: Container[str] = ()
) -> dict[str, torch.Tensor]:
    """Give tensors that were read the strides they had; tied names go on sharing one tensor.

    Args:
        header: As for `room`.
        filled: What `room` gave, filled; changed.
        but: Names of tensors that stay as they are.

    Returns:
        `filled`.
    """
    made: dict[TensorKey, torch.Tensor] = {}
    for name in header.strided:
        info = header.tensors[name]
        if info.strides is None or name in but:
            continue
        if info.key not in made:
            made[info.key] = laid_out(filled[name], info.strides)
        filled[name] = made[info.key]
    return filled


@uncollected
def row(header: Header, filled: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return memory for all bytes of a file in their order: a scratch for the header, then tensors.

    Args:
        header: The file's.
        filled: A contiguous tensor of the dtype and the whole shape for each name, on any device;
            tied names have the same. Of one that the file holds a piece of, the row has a view.

    Returns:
        Tensors whose elements in order take the bytes. Only views of pieces may have gaps between
        their elements (`put`).
    """
    row = [torch.empty(header.length, dtype=torch.uint8, device="cpu")]
    at = header.length
    for name, (_, shape, begin, end, _, _) in header.tensors.items():
        if begin == at < end:
            piece = header.pieces.get(name)
            row.append(filled[name] if piece is None else piece_of(filled[name], piece, shape))
            at = end
    return row


def piece_of(tensor: torch.Tensor, piece: Piece, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a view of the piece of a tensor that has that shape."""
    tensor = tensor.detach()
    for dimension, (begin, size) in enumerate(zip(piece.offset, shape, strict=True)):
        tensor = tensor.narrow(dimension, begin, size)
    return tensor
