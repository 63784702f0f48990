"""Hold optimizers back while what their next step changes is still being copied.

What `Fence.covers` is changed by nothing but a step of the optimizers given: their parameters and
their state. What else could change these tensors, and cannot be held back, is listed in
docs/adr/0009-overlap.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ray_imuckpt.state.sharding import part_here
from ray_imuckpt.state.wrappers import bare_optimizer

logger = logging.getLogger("ray_imuckpt")


class Fence:
    """The call of a function before every step of some optimizers.

    An optimizer that knows no such hooks is named in a warning, and what it may change is not
    covered; nor is what a ``capturable`` one changes, since a CUDA graph that is replayed runs no
    hooks.

    Args:
        optimizers: All that are saved.
    """

    def __init__(self, optimizers: Iterable[Any]) -> None:
        self._hold: Callable[[], None] | None = None
        self._handles: list[Any] = []
        covered: set[_Memory] = set()
        open_to_others: set[_Memory] = set()
        for optimizer in map(bare_optimizer, optimizers):
            if any(group.get("capturable") for group in optimizer.param_groups):
                open_to_others |= _changed_by(optimizer)
                continue
            try:
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                covered |= _changed_by(optimizer)
            except AttributeError:
                open_to_others |= _changed_by(optimizer)
                logger.warning(
                    "%s knows no hooks before its step (was torch.optim.Optimizer.__init__ "
                    'called?): with snapshot="overlap" what it changes is copied at once.',
                    type(optimizer).__name__,
                )
        self._covered = covered - open_to_others

    def covers(self, tensor: torch.Tensor) -> bool:
        """Return whether nothing but a step that is held back changes the tensor's memory."""
        return _memory(tensor) in self._covered and not tensor.is_inference()

    def hold(self, wait: Callable[[], None]) -> None:
        """Call `wait` before every step from now on."""
        self._hold = wait

    def remove(self) -> None:
        """Let the optimizers step as before."""
        for handle in self._handles:
            handle.remove()

    def _before_step(self, *_: object) -> None:
        if self._hold is not None:
            self._hold()


_Memory = tuple[torch.device, int, torch.Size, tuple[int, ...]]


def _memory(tensor: torch.Tensor) -> _Memory:
    """Return which elements a tensor holds: one that begins there and ends elsewhere is another."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _changed_by(optimizer: Any) -> set[_Memory]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    by_parameter = getattr(optimizer, "state", {})  # what only looks like one may have none
    states = [values for values in by_parameter.values() if isinstance(values, dict)]
    tensors = parameters + [value for values in states for value in values.values()]
    parts = [part_here(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return {_memory(part.detach()) for part in parts if part.numel()}
