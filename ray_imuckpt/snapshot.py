"""Host copies of tensors, from which a save writes while training goes on. Touches torch, threads.

The first write into memory that was never touched costs a page fault for every 4 KiB, which makes
a fresh ``clone()`` several times slower than the copy itself. So the host memory is mapped once and
used again for every save. One save is in flight at a time, hence one buffer for each kind of
memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping

import torch

from ray_imuckpt import parallel

_ALIGNMENT = 64
_SEGMENT = 4 * 1024 * 1024  # of a copy: small enough to share the work evenly between threads


def host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor as a contiguous CPU tensor; memory is shared where it already is one."""
    return {name: _plain(tensor).cpu().contiguous() for name, tensor in tensors.items()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg()


class HostBuffers:
    """Host memory for one copy of the state, kept from save to save."""

    def __init__(self) -> None:
        self._arenas: dict[bool, torch.Tensor] = {}

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A copy of each tensor, contiguous, on the host; complete when this returns.

        What the previous call returned is overwritten. Tensors that are the same memory are copied
        once. CUDA tensors are copied on a stream of their own into pinned memory, and only these
        copies are waited for, not the device.
        """
        sources: dict[tuple[object, ...], torch.Tensor] = {}
        keys = {}
        for name, tensor in tensors.items():
            plain = _plain(tensor)
            key = (plain.device, plain.data_ptr(), plain.shape, plain.stride(), plain.dtype)
            keys[name] = key if plain.numel() else (name,)
            sources[keys[name]] = plain
        copies: dict[tuple[object, ...], torch.Tensor] = {}
        for pinned in (False, True):
            mine = {key: t for key, t in sources.items() if t.is_cuda == pinned}
            copies |= self._copy(mine, pinned=pinned)
        return {name: copies[key] for name, key in keys.items()}

    def _copy(
        self, sources: dict[tuple[object, ...], torch.Tensor], *, pinned: bool
    ) -> dict[tuple[object, ...], torch.Tensor]:
        offsets, size = {}, 0
        for key, tensor in sources.items():
            offsets[key] = size
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        arena = self._arena(size, pinned=pinned)
        copies = {}
        for key, tensor in sources.items():
            flat = arena[offsets[key] : offsets[key] + tensor.nbytes]
            copies[key] = flat.view(tensor.dtype).view(tensor.shape)
        pairs = [(copies[key], tensor) for key, tensor in sources.items()]
        if pinned:
            _copy_from_cuda(pairs)
        else:
            _copy_on_host(pairs)
        return copies

    def _arena(self, size: int, *, pinned: bool) -> torch.Tensor:
        arena = self._arenas.get(pinned)
        if arena is None or len(arena) < size:
            self._arenas.pop(pinned, None)  # freed before the larger one is mapped
            arena = torch.empty(size, dtype=torch.uint8, pin_memory=pinned and size > 0)
            self._arenas[pinned] = arena
        return arena


class Windows:
    """Host memory through which bytes pass on their way to other devices, or to other ranks.

    Args:
        size: Bytes of a window.
        devices: Where the bytes go. For CUDA devices there are two windows, pinned and used in
            turn, so that one is filled while the other is copied.
    """

    def __init__(self, size: int, devices: Iterable[torch.device]) -> None:
        self._cuda = {device for device in devices if device.type == "cuda"}
        count = 2 if self._cuda else 1
        self._buffers = [
            torch.empty(size, dtype=torch.uint8, pin_memory=bool(self._cuda and size))
            for _ in range(count)
        ]
        self._copies: list[list[torch.cuda.Event]] = [[] for _ in range(count)]

    def next(self) -> torch.Tensor:
        """A window that may be written to."""
        self._buffers.append(self._buffers.pop(0))
        self._copies.append(self._copies.pop(0))
        _wait(self._copies[-1])
        return self._buffers[-1]

    def used(self) -> None:
        """The copies out of the window that `next` gave have been begun."""
        for device in self._cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._copies[-1].append(event)

    def finish(self) -> None:
        """Return when all copies have ended."""
        for copies in self._copies:
            _wait(copies)


def _wait(events: list[torch.cuda.Event]) -> None:
    while events:
        events.pop().synchronize()


def _copy_on_host(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    segments: list[tuple[int, int, int]] = []
    for target, source in pairs:
        if source.device.type != "cpu" or not source.is_contiguous():
            target.copy_(source)
            continue
        to, of = target.data_ptr(), source.data_ptr()
        for begin in range(0, source.nbytes, _SEGMENT):
            length = min(_SEGMENT, source.nbytes - begin)
            segments.append((to + begin, of + begin, length))
    groups = _groups(segments)

    def copy(index: int) -> None:
        for to, of, length in groups[index]:
            ctypes.memmove(to, of, length)  # frees the GIL, and needs no tensor for each piece

    parallel.each(copy, len(groups))


def _groups(segments: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Segments in runs of about `_SEGMENT` bytes, so that small tensors share one call."""
    groups: list[list[tuple[int, int, int]]] = []
    room = 0
    for segment in segments:
        if room < segment[2] or not groups:
            groups.append([])
            room = _SEGMENT
        groups[-1].append(segment)
        room -= segment[2]
    return groups


def _copy_from_cuda(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for target, source in pairs:
        if source.device not in streams:
            streams[source.device] = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
            streams[source.device].wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(streams[source.device]):
            target.copy_(source, non_blocking=True)
            source.record_stream(streams[source.device])
    for stream in streams.values():
        stream.synchronize()
