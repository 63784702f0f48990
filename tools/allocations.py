"""The memory that `torch.empty` gives, as a test or a benchmark watches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Allocation(NamedTuple):
    """A tensor that was made.

    Attributes:
        nbytes: Its bytes.
        dimensions: How many it has.
        device: The kind of device that it is on: ``"cpu"``, ``"cuda"``, …
    """

    nbytes: int
    dimensions: int
    device: str


@contextmanager
def allocations() -> Iterator[list[Allocation]]:
    """Give what `torch.empty` makes meanwhile, on any thread."""
    real, made = torch.empty, list[Allocation]()

    def empty(*arguments: Any, **options: Any) -> torch.Tensor:
        tensor = real(*arguments, **options)
        made.append(Allocation(tensor.nbytes, tensor.dim(), tensor.device.type))
        return tensor

    torch.empty = empty
    try:
        yield made
    finally:
        torch.empty = real
