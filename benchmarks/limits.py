"""What the hardware allows: the raw copy, write and read that no library can beat."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import xxhash
from torch import nn

_PIECE = 8 << 20
_RUN = 1 << 20
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
    begin_writeback = getattr(ctypes.CDLL(None), "sync_file_range", lambda *_: None)
    begin_writeback.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def begin_writing(descriptor: int, offset: int, length: int) -> None:
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


def reader(directory: Path, prefix: str = "", *, hashed: bool = False) -> Callable[[], None]:
    """Reads a checkpoint's files into mapped memory, from as many threads as there are cores.

    Args:
        directory: The checkpoint.
        prefix: Of the files' names.
        hashed: Whether every byte goes through XXH3-128 as well, a run of `_RUN` bytes at a time,
            while it is in the processor's caches.
    """
    files = [path for path in sorted(directory.iterdir()) if path.name.startswith(prefix)]
    buffers = [torch.zeros(path.stat().st_size, dtype=torch.uint8).numpy().data for path in files]
    pieces = [
        (path, view[begin : begin + _PIECE], begin)
        for path, view in zip(files, buffers, strict=True)
        for begin in range(0, len(view), _PIECE)
    ]

    def read() -> None:
        descriptors = {path: os.open(path, os.O_RDONLY) for path in files}

        def run(first: int) -> None:
            for path, view, begin in pieces[first :: cores()]:
                step = _RUN if hashed else len(view)
                digest = xxhash.xxh3_128()
                for at in range(0, len(view), step):
                    os.preadv(descriptors[path], [view[at : at + step]], begin + at)
                    if hashed:
                        digest.update(view[at : at + step])

        _on_threads(run)
        for descriptor in descriptors.values():
            os.close(descriptor)

    return read


def fresh_reader(directory: Path) -> Callable[[], None]:
    """As `reader`, the optimizer's file into memory that was never touched."""
    others = [reader(directory, "model"), reader(directory, "state")]
    (path,) = directory.glob("optimizer-*")

    def read() -> None:
        for other in others:
            other()
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
