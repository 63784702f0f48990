"""The layout in memory of an optimizer's state, beside the parameters that it belongs to.

Fused kernels go through a parameter, its gradient and its state as they lie in memory, whatever
their strides: state of another layout would be paired with the wrong elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import Strides, TensorInfo, in_same_order, is_plain
from ray_imuckpt.state.names import parameters_by_name

SavedTensors = Mapping[str, TensorInfo | torch.Tensor]


class SavedLayouts:
    """The layouts in memory that parameters had when they were saved; looked up rarely.

    Args:
        models: Each live model, and the tensors that were saved of it, or where they lie.

    Attributes:
        changed: The names of parameters with state whose layout is another one now.
    """

    def __init__(self, models: Iterable[tuple[nn.Module, SavedTensors]] = ()) -> None:
        self._models = list(models)
        self.changed: set[str] = set()

    def is_kept(self, parameter: torch.Tensor) -> bool:
        """Return whether the parameter lies as when it was saved; not where it is of no model."""
        if id(parameter) not in self._by_id:
            return False
        name, saved = self._by_id[id(parameter)]
        if in_same_order(parameter, _strides(saved)):
            return True
        self.changed.add(name)
        return False

    @cached_property
    def _by_id(self) -> dict[int, tuple[str, TensorInfo | torch.Tensor]]:
        return {
            id(parameter): (name, saved[name])
            for model, saved in self._models
            for name, parameter in parameters_by_name(model)
            if name in saved
        }


def beside(value: torch.Tensor, parameter: torch.Tensor, layouts: SavedLayouts) -> torch.Tensor:
    """Return state laid out as it must be for its parameter.

    Where the parameter lies as when it was saved, that is as the state was, even if the two differ:
    Adagrad makes its state when it is built, before a ``model.to(memory_format=...)`` perhaps, and
    what lies at the same place goes on belonging together. Otherwise it is as the parameter lies
    now, as the optimizer would make it.

    Args:
        value: State of one parameter, laid out as it was saved.
        parameter: The live parameter.
        layouts: How parameters lay when they were saved.
    """
    if not is_plain(parameter) or value.shape != parameter.shape:
        return value
    if value.stride() == parameter.stride() or value.layout is not torch.strided:
        return value
    if value.is_contiguous() and parameter.is_contiguous():  # CUDA's kernels compare strides
        return value.as_strided(value.shape, parameter.stride())
    if layouts.is_kept(parameter):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _strides(saved: TensorInfo | torch.Tensor) -> Strides | None:
    if isinstance(saved, TensorInfo):
        return saved.strides
    return None if saved.is_contiguous() else saved.stride()
