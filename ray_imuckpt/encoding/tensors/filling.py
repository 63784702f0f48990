"""Tensors for the bytes of a file: room to read into, and what is made of it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeVar

import torch

from ray_imuckpt.encoding.tensors.boxes import Slot, nowhere, slots
from ray_imuckpt.encoding.tensors.header import Header, Share, TensorInfo, TensorKey
from ray_imuckpt.encoding.tensors.memory import flat, is_plain
from ray_imuckpt.encoding.tensors.strides import laid_out
from ray_imuckpt.threads.parallel import uncollected

T = TypeVar("T")


def tensor_at(data: bytes, info: TensorInfo) -> torch.Tensor:
    """Return the tensor that `info` describes, as a copy out of a file's bytes."""
    tensor = torch.empty(info.shape, dtype=info.dtype, device="cpu")
    flat(tensor).numpy().data[:] = memoryview(data)[info.begin : info.end]
    return tensor if info.strides is None else laid_out(tensor, info.strides)


@uncollected
def room(header: Header, live: Mapping[TensorKey, torch.Tensor | Share]) -> dict[str, Any]:
    """Return what takes each stored tensor, nothing in it yet; tied names share one.

    Args:
        header: The file's, or that of all files of a part.
        live: What takes the bytes of stored tensors. For the others there will be new host tensors.
    """
    made: dict[str, Any] = {}
    for name, info in header.tensors.items():
        taking = live.get(info.key)
        if taking is None:
            taking = made.get(info.key[1])  # tied names come behind the one that is stored
        if taking is None:
            taking = torch.empty(info.shape, dtype=info.dtype, device="cpu")
        made[name] = taking
    return made


def lay_out(header: Header, filled: dict[str, T], but: Container[str] = ()) -> dict[str, T]:
    """Give tensors that were read the strides they had; tied names go on sharing one tensor.

    Args:
        header: As for `room`.
        filled: What `room` gave, filled; changed. What is no plain tensor stays as it is.
        but: Names of tensors that stay as they are.

    Returns:
        `filled`.
    """
    made: dict[TensorKey, Any] = {}
    for name in header.strided:
        info = header.tensors[name]
        if info.strides is None or name in but or not is_plain(filled[name]):
            continue
        if info.key not in made:
            whole: Any = filled[name]
            made[info.key] = laid_out(whole, info.strides)
        filled[name] = made[info.key]
    return filled


@uncollected
def row(header: Header, filled: Mapping[str, torch.Tensor | Share]) -> list[Slot]:
    """Return the slots of all bytes of a file in their order, those of the header first.

    Args:
        header: The file's.
        filled: A contiguous tensor of the dtype for each name whose bytes are wanted, on any
            device: of the whole shape, or with the piece that it takes. Tied names have the same.
    """
    row: list[Slot] = [nowhere(header.length)]
    at = header.length
    for name, (_, shape, begin, end, _, _) in header.tensors.items():
        if begin == at < end:
            target, piece = filled.get(name), header.pieces.get(name)
            if target is None or (isinstance(target, Share) and not target.local.numel()):
                row.append(nowhere(end - begin))  # what has no elements may be of any dtype
            elif isinstance(target, Share):
                row += slots(shape, piece, target.local, target.piece)
            elif piece is None:
                row.append(target)
            else:
                row += slots(shape, piece, target, None)
            at = end
    return row
