"""The export of a model's weights as one plain safetensors file. Touches that file."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.encoding import tensors

_PIECE = 8 * 1024 * 1024  # bytes that are written at once


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        file: The file.
        tensors: How many tensors it holds.
        size: Its bytes.
    """

    file: str
    tensors: int
    size: int


def export(weights: Weights, file: str) -> Exported:
    """Write a model's weights under their own names; the memory of a few chunks is needed.

    Args:
        weights: The model.
        file: A local path, under which nothing is yet.

    Raises:
        FileExistsError: Something is there; it was left as it is, and no tensor was read.
        CorruptCheckpointError: The model's bytes are damaged; no file was left.
        OSError: It cannot be written; no file was left.
    """
    with _new_file(file) as target:
        shapes = {name: _without_memory(info) for name, info in weights.tensors.items()}
        head, *_ = tensors.encode(shapes)
        target.write(head[:])
        size = len(head) + sum(tensor.nbytes for tensor in shapes.values())
        for name in tensors.parse_header(head[:], size, file).tensors:
            for begin in range(0, shapes[name].nbytes, _PIECE):
                end = min(begin + _PIECE, shapes[name].nbytes)
                target.write(weights.read(name, begin, end))
    return Exported(file, len(shapes), size)


def _without_memory(info: tensors.TensorInfo) -> torch.Tensor:
    """Return a tensor of this dtype and shape, for a header that is written before the bytes."""
    device = "meta" if info.end > info.begin else "cpu"  # `encode` takes no empty one from a device
    return torch.empty(info.shape, dtype=info.dtype, device=device)


@contextlib.contextmanager
def _new_file(name: str) -> Iterator[BinaryIO]:
    """Let a file be written that is there whole under its name, or not at all.

    A process that is killed leaves the temporary file beside it.

    Raises:
        FileExistsError: Something has the name, from the beginning or in the end.
    """
    if os.path.lexists(name):
        raise _there(name)
    temporary = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _publish(temporary: str, name: str) -> None:
    """Give a file its name, if nothing has it."""
    try:
        os.link(temporary, name)
    except FileExistsError as error:
        raise _there(name) from error
    except OSError:  # a file system without links: an empty file takes the name for an instant
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError as error:
            raise _there(name) from error
        os.replace(temporary, name)


def _there(name: str) -> FileExistsError:
    return FileExistsError(
        errno.EEXIST, "It is there, and nothing is written over it; give another name", name
    )
