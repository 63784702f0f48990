"""Checksums of tensors where they are, to be compared between ranks; none is ever stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ray_imuckpt.encoding import chunks
from ray_imuckpt.encoding.tensors import flat
from ray_imuckpt.threads import parallel

_PIECE = 32 * 1024 * 1024  # bytes that are gone through at a time on a device
_WORD = 8
_ODD = -7046029254386353131  # 2^64 over the golden ratio, as a signed number: it spreads all bits


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a checksum of the values of each plain tensor, whatever its strides.

    Those of tensors on different kinds of devices are not to be compared: they begin with the kind.
    """
    names = list(tensors)
    sums = [""] * len(names)

    def add(index: int) -> None:
        tensor = tensors[names[index]]
        sums[index] = _on_host(tensor) if tensor.is_cpu else _on_device(tensor)

    parallel.each(add, len(names))
    return dict(zip(names, sums, strict=True))


def _on_host(tensor: torch.Tensor) -> str:
    row = flat(tensor.detach().contiguous())
    return f"cpu:{chunks.checksum([row.numpy().data])}"


def _on_device(tensor: torch.Tensor) -> str:
    """Return the sum of all words times odd numbers that differ by place, modulo 2^64."""
    data = flat(tensor.detach().contiguous())
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    weights = torch.arange(min(_PIECE, data.numel()) // _WORD + 1, device=data.device)
    weights = weights.mul_(2).add_(1).mul_(_ODD)
    for piece in torch.split(data, _PIECE):
        padded = data.new_zeros(-(-piece.numel() // _WORD) * _WORD)
        padded[: piece.numel()] = piece
        words = padded.view(torch.int64)
        total = total * _ODD + (words * weights[: words.numel()]).sum()
    return f"{data.device.type}:{int(total.item()) & (2**64 - 1):016x}"
