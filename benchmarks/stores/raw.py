"""obstore alone: the bytes of a state, without names, checksums or a commit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import obstore
import torch
from obstore.store import S3Store
from torch import nn

CONNECTIONS = 16
_MOST = 16 * 1024 * 1024  # bytes of a part or a range
_LEAST = 5 * 1024 * 1024  # bytes of a part, by the rules of S3


class Raw:
    """One object as large as the tensors; a model is its beginning.

    What is saved is one piece of memory, and what is restored goes there again: nothing of it is
    the live objects'.

    Args:
        options: Of s3fs.
        bucket: The store's.
    """

    def __init__(self, options: Mapping[str, Any], bucket: str) -> None:
        self._store = S3Store(
            bucket,
            endpoint=options["endpoint_url"],
            access_key_id=options["key"],
            secret_access_key=options["secret"],
            region="us-east-1",
            virtual_hosted_style_request=False,
            unsigned_payload="config_kwargs" in options,
            client_options={"allow_http": True},
        )
        self._threads = ThreadPoolExecutor(CONNECTIONS)

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the size of the object, and fill as much memory."""
        self._of_model = sum(parameter.nbytes for parameter in model.parameters())
        values = chain.from_iterable(state.values() for state in optimizer.state.values())
        size = self._of_model + sum(value.nbytes for value in values)
        self._path = f"{directory}/state"
        self._memory = torch.ones(size, dtype=torch.uint8).numpy().data

    def save(self) -> None:
        """Send the object, its parts side by side."""
        size = _even(len(self._memory))
        parts = [self._memory[at : at + size] for at in range(0, len(self._memory), size)]
        obstore.put(
            self._store,
            self._path,
            iter(parts),
            use_multipart=len(parts) > 1,
            chunk_size=size,
            max_concurrency=CONNECTIONS,
        )

    def restore(self) -> None:
        """Read the object into the memory that it came from."""
        self._read(len(self._memory))

    def restore_model(self) -> None:
        """Read as much of it as the model has."""
        self._read(self._of_model)

    def _read(self, length: int) -> None:
        size = _even(length)

        def read(at: int) -> None:
            memory = self._memory[at : min(at + size, length)]
            found = obstore.get_range(self._store, self._path, start=at, length=len(memory))
            memory[:] = memoryview(found)

        list(self._threads.map(read, range(0, length, size)))


def _even(total: int) -> int:
    """Return the size of pieces that give each connection the same to do."""
    rounds = max(1, math.ceil(total / (CONNECTIONS * _MOST)))
    return max(_LEAST, math.ceil(total / (CONNECTIONS * rounds)))
