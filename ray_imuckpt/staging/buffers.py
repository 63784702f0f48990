"""A copy of the whole state in host memory, made at once or beside the training.

The first write into memory that was never touched costs a page fault for every 4 KiB, which makes
a fresh ``clone()`` several times slower than the copy itself. So the host memory is mapped once and
used again for every save. One save is in flight at a time, hence one buffer for each kind of
memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ray_imuckpt.encoding.tensors import first_of_tied
from ray_imuckpt.staging import copies
from ray_imuckpt.staging.copies import Pairs
from ray_imuckpt.threads import parallel

_ALIGNMENT = 64

Key = tuple[Any, ...]


class Copy:
    """A copy of tensors on the host, a part of it perhaps still to be made.

    What is left for later is safe as long as `fence` is called before anything changes it.

    Attributes:
        tensors: Name to host tensor; complete once `finish` has returned.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], later: Pairs, names: list[str]) -> None:
        self.tensors = tensors
        self._host = [pair for pair in later if not pair[1].is_cuda]
        self._events = copies.copy_from_cuda([pair for pair in later if pair[1].is_cuda])
        self._process = os.getpid()
        # A second net only: fused optimizers and writes through `.data` do not count versions.
        self._versions = [
            (name, source, source._version)  # noqa: SLF001 - private; tests/test_overlap_conditions.py would fail
            for name, (_, source) in zip(names, later, strict=True)
        ]
        self._before_step: list[str | None] = []  # what `fence` has seen changed, if it was called
        # A lock, held until it is copied: an interrupt could leave that of an Event taken for ever.
        self._copying_on_host = threading.Lock()
        if self._host:
            self._copying_on_host.acquire()

    def fence(self) -> None:
        """Return when the sources may be changed; call it on the thread that will change them.

        CUDA sources may be changed by what that thread enqueues from now on: the host waits for
        copies of host memory only. A process that was forked has memory of its own.
        """
        if os.getpid() != self._process:
            return
        if not self._before_step:
            self._before_step.append(self._changed())
        with self._copying_on_host:
            pass
        for event in self._events:
            event.wait(torch.cuda.current_stream(event.device))

    def finish(self) -> str | None:
        """Make what is left of the copy; on any thread, once.

        Returns:
            The name of a tensor that was changed before it was copied for certain, if any.
        """
        if self._host:
            try:
                copies.copy_on_host(self._host)
            finally:
                self._host = []  # the live tensors are not needed any more
                self._copying_on_host.release()  # or training would wait for ever
        for event in self._events:
            event.synchronize()
        changed = self._changed()
        if self._before_step:  # by now a step may have changed them
            changed = self._before_step[0]
        self._events, self._versions = [], []
        return changed

    def _changed(self) -> str | None:
        return next(
            (
                name
                for name, source, version in self._versions
                if source._version != version  # noqa: SLF001 - see above
            ),
            None,
        )


class HostBuffers:
    """Host memory for one copy of the state, kept from save to save."""

    def __init__(self) -> None:
        self._arenas: dict[bool, torch.Tensor] = {}
        self._laid_out: tuple[list[Key], list[torch.Tensor]] = [], []

    @parallel.uncollected
    def copy(
        self,
        tensors: Mapping[str, torch.Tensor],
        may_wait: Callable[[torch.Tensor], bool] | None = None,
    ) -> Copy:
        """Return a copy of each tensor, contiguous, on the host.

        What the previous call returned is overwritten. Tensors that are the same memory are copied
        once. CUDA tensors are copied on a stream of their own into pinned memory, and only these
        copies are waited for, not the device.

        Args:
            tensors: What to copy.
            may_wait: Whether the copy of a tensor may be left for `Copy.finish`; none if left out.
                What the others hold is copied when this returns.
        """
        plain = {name: copies.plain(tensor) for name, tensor in tensors.items()}
        sources, first = plain, {}
        if len({source.data_ptr() for source in plain.values()}) < len(plain):
            first = first_of_tied(plain)
            sources = {name: plain[name] for name, its_first in first.items() if its_first is name}
        targets = dict(zip(sources, self._targets(list(sources.values())), strict=True))
        host = {name: targets[its_first] for name, its_first in first.items()} or dict(targets)
        late = [] if may_wait is None else [n for n, source in sources.items() if may_wait(source)]
        later = [(targets[name], sources.pop(name)) for name in late]
        now = [(targets[name], source) for name, source in sources.items()]
        copy = Copy(host, later, late)
        events = copies.copy_from_cuda([pair for pair in now if pair[1].is_cuda])
        copies.copy_on_host([pair for pair in now if not pair[1].is_cuda] if events else now)
        for event in events:
            event.synchronize()
        return copy

    @torch.inference_mode(mode=False)  # or no later save could write to them
    def _targets(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return room in the buffers for each source, in a row; pinned for CUDA tensors."""
        kinds = [(source.dtype, source.shape, source.is_cuda) for source in sources]
        if kinds == self._laid_out[0]:  # as in the save before: saves 10 us a tensor
            return self._laid_out[1]
        self._laid_out = [], []  # its memory may have to be freed
        sizes = [-(-source.nbytes // _ALIGNMENT) * _ALIGNMENT for source in sources]
        arenas, offsets = {}, {False: 0, True: 0}
        for pinned in offsets:
            of_kind = (n for n, s in zip(sizes, sources, strict=True) if s.is_cuda == pinned)
            arenas[pinned] = self._arena(sum(of_kind), pinned=pinned)
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
            arena = torch.empty(
                size, dtype=torch.uint8, device="cpu", pin_memory=pinned and size > 0
            )
            self._arenas[pinned] = arena
        return arena
