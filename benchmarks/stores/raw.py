"""A client alone: the bytes of a state, without names, checksums or a commit."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from benchmarks.stores.transports import Transport


class Raw:
    """One object as large as the tensors; a model is its beginning.

    What is saved is one piece of memory, and what is restored goes there again: nothing of it is
    the live objects'.

    Args:
        transport: Moves the bytes.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the size of the object, and fill as much memory."""
        self._of_model = sum(parameter.nbytes for parameter in model.parameters())
        values = chain.from_iterable(state.values() for state in optimizer.state.values())
        size = self._of_model + sum(value.nbytes for value in values)
        self._key = f"{directory}/state"
        self._memory = torch.ones(size, dtype=torch.uint8).numpy().data

    def save(self) -> None:
        """Send the object."""
        self._transport.send(self._key, self._memory)

    def restore(self) -> None:
        """Read the object into the memory that it came from."""
        self._transport.receive(self._key, self._memory)

    def restore_model(self) -> None:
        """Read as much of it as the model has."""
        self._transport.receive(self._key, self._memory[: self._of_model])
