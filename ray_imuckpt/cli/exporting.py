"""The export of a model's weights as plain safetensors files. Touches these files.

One file, or several with an index beside them, as Hugging Face's libraries write and read them: see
"Serializing a sharded state dict" in the documentation of huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.encoding import tensors
from ray_imuckpt.storage import shown

_PIECE = 8 * 1024 * 1024  # bytes that are written at once
_METADATA = {"format": "pt"}  # which some readers ask for


@dataclass(frozen=True)
class Exported:
    """The files that were written.

    Attributes:
        file: The file; where there are several, their index.
        tensors: How many tensors it holds.
        size: Bytes of the file, or of all of them.
        shards: How many files hold the tensors.
    """

    file: str
    tensors: int
    size: int
    shards: int = 1


def export(weights: Weights, file: str, largest: int | None = None) -> Exported:
    """Write a model's weights under their own names; the memory of a few chunks is needed.

    Args:
        weights: The model.
        file: A local path, under which nothing is yet: ``model.safetensors``.
        largest: Bytes of tensors in one file. Where there are more they go into several:
            ``model-00001-of-00003.safetensors`` and so on, and ``model.safetensors.index.json``. A
            tensor that is larger has a file of its own.

    Raises:
        FileExistsError: Something is there; it was left as it is, and no tensor was read.
        CorruptCheckpointError: The model's bytes are damaged; no file was left.
        OSError: It cannot be written; no file was left.
        ValueError: It is a URL.
    """
    shards = _shards(weights, largest)
    if len(shards) == 1:
        return Exported(file, len(weights.tensors), _write(weights, file, shards[0]))
    stem, suffix = os.path.splitext(file)
    names = [f"{stem}-{n:05}-of-{len(shards):05}{suffix}" for n in range(1, len(shards) + 1)]
    index = f"{file}.index.json"
    for name in (file, index, *names):
        if os.path.lexists(name):
            raise _there(name)
    written: list[str] = []
    size = 0
    try:
        for name, tensors_in in zip(names, shards, strict=True):
            size += _write(weights, name, tensors_in)
            written.append(name)
        with new_file(index) as target:
            target.write(_index(weights, dict(zip(names, shards, strict=True))))
    except BaseException:
        for name in written:
            os.unlink(name)
        raise
    return Exported(index, len(weights.tensors), size, len(shards))


def _shards(weights: Weights, largest: int | None) -> list[list[str]]:
    """Return the names of the tensors of each file."""
    if largest is None:
        return [[*weights.tensors]]
    shards: list[list[str]] = [[]]
    held = 0
    for name in weights.in_order():
        info = weights.tensors[name]
        size = info.end - info.begin
        if shards[-1] and held + size > largest:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _index(weights: Weights, shards: dict[str, list[str]]) -> bytes:
    """Return what says in which file each tensor is."""
    infos = weights.tensors.values()
    record = {
        "metadata": {"total_size": sum(info.end - info.begin for info in infos)},
        "weight_map": {n: os.path.basename(file) for file, names in shards.items() for n in names},
    }
    return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"


def _write(weights: Weights, file: str, names: Sequence[str]) -> int:
    """Write a file of these tensors, and return its size."""
    with new_file(file) as target:
        shapes = {name: _without_memory(weights.tensors[name]) for name in names}
        head, *_ = tensors.encode(shapes, metadata=_METADATA)
        target.write(head[:])
        size = len(head) + sum(tensor.nbytes for tensor in shapes.values())
        for name in tensors.parse_header(head[:], size, file).tensors:
            for begin in range(0, shapes[name].nbytes, _PIECE):
                end = min(begin + _PIECE, shapes[name].nbytes)
                target.write(weights.read(name, begin, end))
    return size


def _without_memory(info: tensors.TensorInfo) -> torch.Tensor:
    """Return a tensor of this dtype and shape, for a header that is written before the bytes."""
    device = "meta" if info.end > info.begin else "cpu"  # `encode` takes no empty one from a device
    return torch.empty(info.shape, dtype=info.dtype, device=device)


def check_new(name: str) -> None:
    """Raise where no new file of this name could be made.

    Raises:
        FileExistsError: Something has the name.
        FileNotFoundError: There is no such directory.
        ValueError: It is a URL.
    """
    if os.path.lexists(name):
        raise _there(name)
    directory = os.path.dirname(name)
    if not os.path.isdir(directory or "."):
        if "://" in name:
            raise ValueError(
                f"{shown(name)} is a URL, and the file is written to a local path: name one, and "
                "copy the file from there."
            )
        raise FileNotFoundError(errno.ENOENT, f"There is no directory {directory}", name)


@contextlib.contextmanager
def new_file(name: str) -> Iterator[BinaryIO]:
    """Let a file be written that is there whole under its name, or not at all.

    A process that is killed leaves the temporary file beside it.

    Raises:
        FileExistsError: Something has the name, from the beginning or in the end.
        FileNotFoundError: There is no such directory.
        ValueError: The name is a URL.
    """
    check_new(name)
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
