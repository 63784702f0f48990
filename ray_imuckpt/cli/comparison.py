"""What `diff` tells: how the models of two checkpoints differ. Reads both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ray_imuckpt.cli.contents import TensorRow
from ray_imuckpt.encoding import tensors
from ray_imuckpt.loading.stored import LoadedCheckpoint


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both.

    Attributes:
        name: Its name.
        first: What it is in the first checkpoint, ``None`` if it is not there.
        second: What it is in the second one.
        largest: The largest difference of two values, where dtype and shape are the same.
    """

    name: str
    first: TensorRow | None
    second: TensorRow | None
    largest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """How two models differ.

    Attributes:
        first: The epoch of the first checkpoint.
        second: That of the second one.
        tensors: How many names there are in both together.
        differences: The tensors that are not the same.
    """

    first: int
    second: int
    tensors: int
    differences: tuple[Difference, ...]


def compare(first: LoadedCheckpoint, second: LoadedCheckpoint) -> Comparison:
    """Return how the models of two checkpoints differ, byte by byte.

    Raises:
        CorruptCheckpointError: One of the models is damaged.
    """
    models = first.model, second.model
    names = sorted(models[0].keys() | models[1].keys())
    found = (_difference(name, models[0].get(name), models[1].get(name)) for name in names)
    differences = tuple(difference for difference in found if difference is not None)
    return Comparison(first.epoch, second.epoch, len(names), differences)


def _difference(
    name: str, first: torch.Tensor | None, second: torch.Tensor | None
) -> Difference | None:
    rows = _row(name, first), _row(name, second)
    if first is None or second is None or rows[0] != rows[1]:
        return Difference(name, *rows)
    if bytes(tensors.byte_view(first)[:]) == bytes(tensors.byte_view(second)[:]):
        return None
    wide = torch.complex128 if first.is_complex() else torch.float64
    return Difference(name, *rows, (first.to(wide) - second.to(wide)).abs().max().item())


def _row(name: str, tensor: torch.Tensor | None) -> TensorRow | None:
    if tensor is None:
        return None
    return TensorRow(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
