"""Host copies of tensors, from which a save writes while training goes on. Touches torch, threads.

The first write into memory that was never touched costs a page fault for every 4 KiB, which makes
a fresh ``clone()`` several times slower than the copy itself. So the host memory is mapped once and
used again for every save. One save is in flight at a time, hence one buffer for each kind of
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ray_imuckpt import parallel

_ALIGNMENT = 64
_SEGMENT = 16 * 1024 * 1024  # of a copy: small enough to share the work evenly between threads
_TOGETHER = 256  # tensors in one call

# Private, but the only call of torch that copies many tensors without taking the GIL for each: for
# 13,000 tensors of 450 MB it needs 0.05 s on two threads, `copy_` or memmove for each 0.09 s.
_COPY_MANY = getattr(torch, "_foreach_copy_", None)

Key = tuple[Any, ...]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Target and source of each copy."""


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor contiguous, where it is; memory is shared where it already was.

    What CUDA devices were told to compute is computed when this returns: the bytes are fetched by
    other threads, which have streams of their own.
    """
    found = {name: _plain(tensor).contiguous() for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in found.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        return tensor.detach().resolve_conj().resolve_neg()
    return tensor


class Copy:
    """A copy of tensors on the host, a part of it perhaps still to be made.

    What is left for later is safe as long as `fence` is called before anything changes it.

    Attributes:
        tensors: Name to host tensor; complete once `finish` has returned.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], later: Pairs, names: list[str]) -> None:
        self.tensors = tensors
        self._host = [pair for pair in later if not pair[1].is_cuda]
        self._events = _copy_from_cuda([pair for pair in later if pair[1].is_cuda])
        # A second net only: fused optimizers and writes through `.data` do not count versions.
        self._versions = [
            (name, source, source._version)  # noqa: SLF001 - private; tests/test_overlap.py would fail
            for name, (_, source) in zip(names, later, strict=True)
        ]
        self._changed: str | None = None
        self._fenced = False
        self._copied = threading.Event()
        self._lock = threading.Lock()

    def fence(self) -> None:
        """Return when the sources may be changed; call it on the thread that will change them.

        CUDA sources may be changed by what that thread enqueues from now on.
        """
        with self._lock:
            if not (self._fenced or self._copied.is_set()):
                self._fenced = True
                self._look()
        if self._host:
            self._copied.wait()
        for event in self._events:
            event.wait(torch.cuda.current_stream(event.device))

    def finish(self) -> str | None:
        """Make what is left of the copy; on any thread, once.

        Returns:
            The name of a tensor that was changed before it was copied for certain, if any.
        """
        try:
            _copy_on_host(self._host)
            for event in self._events:
                event.synchronize()
            with self._lock:
                if not self._fenced:
                    self._look()
        finally:
            self._copied.set()  # whatever happened: training must not wait for ever
            self._host, self._versions = [], []  # the live tensors are not needed any more
        return self._changed

    def _look(self) -> None:
        for name, source, version in self._versions:
            if source._version != version:  # noqa: SLF001 - see above
                self._changed = name


class HostBuffers:
    """Host memory for one copy of the state, kept from save to save."""

    def __init__(self) -> None:
        self._arenas: dict[bool, torch.Tensor] = {}
        self._laid_out: tuple[list[Key], list[torch.Tensor]] = [], []

    @parallel.uncollected()
    def copy(
        self,
        tensors: Mapping[str, torch.Tensor],
        may_wait: Callable[[torch.Tensor], bool] = lambda _: False,
    ) -> Copy:
        """A copy of each tensor, contiguous, on the host.

        What the previous call returned is overwritten. Tensors that are the same memory are copied
        once. CUDA tensors are copied on a stream of their own into pinned memory, and only these
        copies are waited for, not the device.

        Args:
            tensors: What to copy.
            may_wait: Whether the copy of a tensor may be left for `Copy.finish`. What the others
                hold is copied when this returns.
        """
        numbers: dict[Key, int] = {}
        number_of: dict[str, int] = {}
        sources: list[torch.Tensor] = []
        names: list[str] = []
        for name, tensor in tensors.items():
            plain = _plain(tensor)
            key: Key = (plain.data_ptr(), plain.shape, plain.stride(), plain.dtype, plain.device)
            number = numbers.setdefault(key if plain.numel() else (name,), len(sources))
            number_of[name] = number
            if number == len(sources):
                sources.append(plain)
                names.append(name)
        targets = self._targets(sources)
        now: Pairs = []
        later: Pairs = []
        late: list[str] = []
        for name, target, source in zip(names, targets, sources, strict=True):
            if may_wait(source):
                late.append(name)
                later.append((target, source))
            else:
                now.append((target, source))
        copy = Copy({name: targets[number] for name, number in number_of.items()}, later, late)
        events = _copy_from_cuda([pair for pair in now if pair[1].is_cuda])
        _copy_on_host([pair for pair in now if not pair[1].is_cuda])
        for event in events:
            event.synchronize()
        return copy

    def _targets(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Room for each source in the buffers, one after the other; pinned for CUDA tensors."""
        kinds = [(source.dtype, source.shape, source.is_cuda) for source in sources]
        if kinds == self._laid_out[0]:  # as in the save before: saves 10 us a tensor
            return self._laid_out[1]
        self._laid_out = [], []  # its memory may have to be freed
        sizes = [-(-source.nbytes // _ALIGNMENT) * _ALIGNMENT for source in sources]
        arenas, offsets = {}, {False: 0, True: 0}
        for pinned in offsets:
            mine = (n for n, s in zip(sizes, sources, strict=True) if s.is_cuda == pinned)
            arenas[pinned] = self._arena(sum(mine), pinned=pinned)
        targets = []
        for source, size in zip(sources, sizes, strict=True):
            begin = offsets[source.is_cuda]
            flat = arenas[source.is_cuda][begin : begin + source.nbytes]
            targets.append(flat.view(source.dtype).view(source.shape))
            offsets[source.is_cuda] += size
        self._laid_out = kinds, targets
        return targets

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
            self._copies[-1].append(torch.cuda.current_stream(device).record_event())

    def finish(self) -> None:
        """Return when all copies have ended."""
        for copies in self._copies:
            _wait(copies)


def _wait(events: list[torch.cuda.Event]) -> None:
    while events:
        events.pop().synchronize()


def _copy_on_host(pairs: Pairs) -> None:
    if torch.get_num_threads() > 1:
        _copy_many(pairs)  # shared among torch's own threads
        return
    # Ray sets OMP_NUM_THREADS to the CPUs of a worker: 1, unless it is told otherwise.
    groups = _groups(pairs)
    parallel.each(lambda index: _copy_many(groups[index]), len(groups))


def _copy_many(pairs: Pairs) -> None:
    if _COPY_MANY is not None and pairs:
        _COPY_MANY([target for target, _ in pairs], [source for _, source in pairs])
        return
    for target, source in pairs:
        target.copy_(source)


def _groups(pairs: Pairs) -> list[Pairs]:
    """The pairs in runs of about `_SEGMENT` bytes, so that small tensors share one call."""
    groups: list[Pairs] = []
    room = 0
    for pair in pairs:
        for piece in (pair,) if pair[1].nbytes <= _SEGMENT else _cut(*pair):
            size = piece[1].nbytes
            if room < size or not groups or len(groups[-1]) == _TOGETHER:
                groups.append([])
                room = _SEGMENT
            groups[-1].append(piece)
            room -= size
    return groups


def _cut(target: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A large copy as copies of `_SEGMENT` bytes, where the source is in one piece."""
    if not source.is_contiguous():
        yield target, source
        return
    step = max(1, _SEGMENT // source.element_size())
    to, of = target.view(-1), source.view(-1)
    for begin in range(0, len(of), step):
        yield to[begin : begin + step], of[begin : begin + step]


def _copy_from_cuda(pairs: Pairs) -> list[torch.cuda.Event]:
    """Begin the copies behind what their devices were told so far; the events of their ends."""
    streams: dict[torch.device, torch.cuda.Stream] = {}
    for target, source in pairs:
        if source.device not in streams:
            streams[source.device] = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
            streams[source.device].wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(streams[source.device]):
            target.copy_(source, non_blocking=True)
            source.record_stream(streams[source.device])
    return [stream.record_event() for stream in streams.values()]
