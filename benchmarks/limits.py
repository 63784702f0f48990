"""What the hardware allows: the raw copy, write and read that no library can beat."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import xxhash
from torch import nn

_PIECE = 8 << 20
_RUN = 1 << 20
_VIEWS = 1024  # IOV_MAX of Linux
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor of the state."""
    moments = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return [parameter.detach() for parameter in model.parameters()] + moments


def copier(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Copies the tensors into mapped memory, from as many threads as there are cores."""
    sizes = [tensor.nbytes for tensor in tensors]
    target = torch.zeros(sum(sizes), dtype=torch.uint8)
    jobs = []
    at = target.data_ptr()
    for tensor, size in zip(tensors, sizes, strict=True):
        jobs.append((at, tensor.data_ptr(), size))
        at += size

    def run(first: int) -> None:
        for job in jobs[first :: cores()]:
            ctypes.memmove(*job)

    def copy() -> None:
        _on_threads(run)
        assert len(target)  # noqa: S101 - it must live as long as this function

    return copy


def writer(path: Path, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Writes the tensors' bytes to a new file, on as many threads as cores, syncs, replaces.

    The disk is told to begin with each piece, as far as the system can be told (Linux).
    The file of the time before stays until the new one is whole, as with every checkpoint: on a
    disk that first has to find new blocks this is what costs.
    """
    views = [tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in tensors]
    offsets = [0]
    for view in views:
        offsets.append(offsets[-1] + len(view))
    new = path.with_suffix(".new")
    begin_writeback = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin_writeback is not None:
        begin_writeback.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def begin_writing(descriptor: int, offset: int, length: int) -> None:
        if begin_writeback is not None:
            begin_writeback(descriptor, offset, length, _WRITE)

    def write() -> None:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(descriptor, 0, offsets[-1])

        def run(first: int) -> None:
            for index in range(first, len(views), cores()):
                os.pwrite(descriptor, views[index], offsets[index])
                begin_writing(descriptor, offsets[index], len(views[index]))

        _on_threads(run)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(new, path)

    return write


def by_name(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of the state by the names under which a checkpoint holds them."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            state = optimizer.state[parameter]
            found |= {f"optimizer.state.{name}.{key}": value for key, value in state.items()}
    return found


def reader(
    directory: Path, tensors: Mapping[str, torch.Tensor], *, hashed: bool = False
) -> Callable[[], None]:
    """Reads a checkpoint's tensors, and nothing else, to where a restore has to put them.

    From as many threads as there are cores. Into the tensors' own memory, not into a buffer: on a
    virtual machine one buffer takes the same bytes 1.5 times as fast as another.

    Args:
        directory: The checkpoint.
        tensors: By their names there.
        hashed: Whether every byte goes through XXH3-128 as well, a run of `_RUN` bytes at a time,
            while it is in the processor's caches.
    """
    paths = sorted(directory.glob("*.safetensors"))
    pieces = [
        (path, views, offset)
        for path in paths
        for views, offset in _pieces(path, tensors, _RUN if hashed else _PIECE)
    ]

    def read() -> None:
        descriptors = {path: os.open(path, os.O_RDONLY) for path in paths}

        def run(first: int) -> None:
            for path, views, offset in pieces[first :: cores()]:
                os.preadv(descriptors[path], views, offset)
                digest = xxhash.xxh3_128()
                for view in views if hashed else ():
                    digest.update(view)

        _on_threads(run)
        for descriptor in descriptors.values():
            os.close(descriptor)

    return read


def _pieces(
    path: Path, tensors: Mapping[str, torch.Tensor], size: int
) -> Iterator[tuple[list[memoryview], int]]:
    """The bytes of a file in runs of about `size`: where each goes, and its offset."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(length))
    fields.pop("__metadata__", None)
    views: list[memoryview] = []
    offset = end = 8 + length
    for name, entry in sorted(fields.items(), key=lambda field: field[1]["data_offsets"]):
        begin = 8 + length + entry["data_offsets"][0]
        rest = memoryview(b"")
        if name in tensors:
            rest = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        while len(rest):
            room = size - (end - offset)
            if begin != end or not room or len(views) == _VIEWS:
                if views:
                    yield views, offset
                views, offset, end, room = [], begin, begin, size
            views.append(rest[:room])
            begin = end = begin + len(views[-1])
            rest = rest[room:]
    if views:
        yield views, offset


def fresh_reader(directory: Path, model: nn.Module) -> Callable[[], None]:
    """As `reader`, the optimizer's file into memory that was never touched."""
    read_model = reader(directory, by_name(model))
    (path,) = directory.glob("optimizer-*")

    def read() -> None:
        read_model()
        view = torch.empty(path.stat().st_size, dtype=torch.uint8).numpy().data
        descriptor = os.open(path, os.O_RDONLY)

        def run(first: int) -> None:
            for begin in range(first * _PIECE, len(view), cores() * _PIECE):
                os.preadv(descriptor, [view[begin : begin + _PIECE]], begin)

        _on_threads(run)
        os.close(descriptor)

    return read


def sync() -> None:
    """Everything that was written, to the disk."""
    os.sync()


def _on_threads(run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(index,)) for index in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
