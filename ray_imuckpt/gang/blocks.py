"""Bytes as tensors that travel: padded to the size of the longest, or as blocks of fixed length.

Ranks that do not know each other's sizes exchange blocks first; what fits into one is there then.
"""

from __future__ import annotations

import torch

_BLOCK_BYTES = 512  # what is no longer needs one collective, not two
_SIZE_BYTES = 8


def to_block(payload: bytes) -> torch.Tensor:
    """Return a message of fixed length: the payload's size, and as much of it as there is room."""
    head = len(payload).to_bytes(_SIZE_BYTES, "little")
    return padded((head + payload)[:_BLOCK_BYTES], _BLOCK_BYTES)


def from_block(block: torch.Tensor) -> tuple[int, bytes | None]:
    """Return the payload's size and the payload, or ``None`` where that is not all there."""
    data = unpadded(block, _BLOCK_BYTES)
    size = int.from_bytes(data[:_SIZE_BYTES], "little")
    end = _SIZE_BYTES + size
    return size, data[_SIZE_BYTES:end] if end <= _BLOCK_BYTES else None


def padded(payload: bytes, size: int) -> torch.Tensor:
    """Return the payload as a one-dimensional uint8 tensor of `size` bytes, zeros at its end."""
    buffer = torch.zeros(size, dtype=torch.uint8, device="cpu")
    if payload:
        buffer[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return buffer


def unpadded(tensor: torch.Tensor, size: int) -> bytes:
    """Return the first `size` bytes of such a tensor."""
    return tensor[:size].numpy().tobytes()
