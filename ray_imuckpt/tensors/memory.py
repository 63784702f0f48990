"""The memory of tensors: as bytes, and whether bytes may be put straight into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.parallel import uncollected


def byte_view(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous tensor as bytes, not copied."""
    row = flat(tensor)
    return row.numpy().data if row.device.type == "cpu" else DeviceBytes(row)


class DeviceBytes:
    """Bytes in the memory of a device, each slice fetched when it is asked for.

    Args:
        row: One-dimensional uint8 tensor.
    """

    def __init__(self, row: torch.Tensor) -> None:
        self._row = row

    def __len__(self) -> int:
        """The number of bytes."""
        return len(self._row)

    def __getitem__(self, piece: slice) -> memoryview:
        """A copy of some of them in host memory."""
        return self._row[piece].cpu().numpy().data


Bytes = memoryview | DeviceBytes


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor as a one-dimensional uint8 tensor, not copied."""
    row = tensor.detach().reshape(-1)
    if row.is_complex():
        row = torch.view_as_real(row).reshape(-1)
    return row.view(torch.uint8)


def takes(live: Any, place: torch.Tensor) -> bool:
    """Whether the bytes of `place` may be put straight into the memory of `live`."""
    return (
        (type(live) is torch.Tensor or type(live) is nn.Parameter)
        and live.layout == torch.strided
        and live.device.type in ("cpu", "cuda")
        and live.dtype == place.dtype
        and live.shape == place.shape
        and live.is_contiguous()
        and not (live.is_quantized or live.is_conj() or live.is_neg())
    )


@uncollected()
def disjoint(live: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Those tensors that share no memory with another one before them."""
    kept = {}
    device, end = None, 0
    for key, tensor in sorted(live.items(), key=lambda item: _address(item[1])):
        begin = tensor.data_ptr()
        if tensor.device != device or begin >= end:
            kept[key] = tensor
            device, end = tensor.device, begin + tensor.nbytes
    return kept


def _address(tensor: torch.Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.data_ptr()
