"""The memory of tensors: as bytes, and whether bytes may be put straight into it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

K = TypeVar("K")

# All memory of this process as one row of bytes: to cut a tensor's bytes out of it takes a tenth of
# the time that the tensor's own view takes.
_ALL = memoryview((ctypes.c_ubyte * sys.maxsize).from_address(0)).cast("B")


def byte_view(tensor: torch.Tensor) -> Bytes:
    """Return a tensor's bytes: its own memory where that is contiguous and the host's.

    Only for as long as the caller holds the tensor, as with any pointer: the view does not. A row
    of such views (`ray_imuckpt.encoding.chunks.Chunks`) is told their owner.
    """
    if not (tensor.is_cpu and tensor.is_contiguous()):
        return FetchedBytes(tensor)
    return byte_address(tensor)


def byte_address(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the host; see `byte_view` on who holds it."""
    begin = tensor.data_ptr()
    return _ALL[begin : begin + tensor.nbytes]


class FetchedBytes:
    """Bytes on a device, or not in a row; each slice is copied when it is asked for.

    Of a tensor that is not contiguous whole rows of the first dimension are copied at once.

    Args:
        tensor: Dense, of any strides.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._rows = tensor.detach()
        while self._rows.dim() > 1 and len(self._rows) == 1:
            self._rows = self._rows[0]
        self._row = self._rows.nbytes // len(self._rows) if self._rows.dim() else 0
        self._contiguous = tensor.is_contiguous()

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._rows.nbytes

    def __getitem__(self, piece: slice) -> memoryview:
        """Return a copy of some of them in host memory."""
        begin, end, _ = piece.indices(len(self))
        if self._contiguous or not self._row:
            return flat(self._rows)[begin:end].cpu().numpy().data
        first = begin // self._row
        rows = flat(self._rows[first : -(-end // self._row)].contiguous())
        return rows[begin - first * self._row : end - first * self._row].cpu().numpy().data


Bytes = memoryview | FetchedBytes


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a contiguous tensor as a one-dimensional uint8 tensor, not copied."""
    row = tensor.detach().reshape(-1)
    if len(row) < 2:  # its stride may be anything, and it counts as contiguous all the same
        row = row.as_strided(row.shape, (1,))
    if row.is_complex():
        row = torch.view_as_real(row).reshape(-1)
    return row.view(torch.uint8)


def is_plain(value: Any) -> bool:
    """Return whether it is a tensor or parameter of torch's own, not of a derived class."""
    return type(value) is torch.Tensor or type(value) is nn.Parameter


def takes(live: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Return whether the bytes of such a tensor may be put straight into the memory of `live`."""
    kind = type(live)
    return (
        (kind is torch.Tensor or kind is nn.Parameter)  # not is_plain(): a call for each tensor
        and live.dtype is dtype
        and live.shape == shape
        and live.layout is torch.strided
        and (live.is_cpu or live.is_cuda)
        and live.is_contiguous()
        and not (live.is_neg() or (dtype.is_complex and live.is_conj()))
    )


def disjoint(live: Mapping[K, torch.Tensor]) -> dict[K, torch.Tensor]:
    """Return those tensors that share no memory with another one before them."""
    alone = {}
    for device in {tensor.device for tensor in live.values()}:
        begins = [
            (tensor.data_ptr(), key) for key, tensor in live.items() if tensor.device == device
        ]
        end = 0
        for begin, key in sorted(begins):
            if begin >= end:
                alone[key] = tensor = live[key]
                end = begin + tensor.nbytes
    return alone
