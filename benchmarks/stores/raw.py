"""obstore alone: the bytes of a state, without names, checksums or a commit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    """One object for the model and one for the optimizer, each as large as the tensors are.

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
            client_options={"allow_http": True},
        )
        self._threads = ThreadPoolExecutor(CONNECTIONS)

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the sizes of the objects, and fill as much memory."""
        of_model = sum(parameter.nbytes for parameter in model.parameters())
        values = chain.from_iterable(state.values() for state in optimizer.state.values())
        of_optimizer = sum(value.nbytes for value in values)
        self._files = {f"{directory}/model": of_model, f"{directory}/optimizer": of_optimizer}
        self._memory = torch.ones(of_model + of_optimizer, dtype=torch.uint8).numpy().data

    def _ranges(self) -> Iterator[tuple[str, int, memoryview]]:
        """Yield file, offset and memory of ranges that give each connection the same to do."""
        size = _even(sum(self._files.values()))
        begin = 0
        for path, length in self._files.items():
            memory = self._memory[begin : begin + length]
            begin += length
            for offset in range(0, length, size):
                yield path, offset, memory[offset : offset + size]

    def save(self) -> None:
        """Send both objects, their parts side by side."""
        size = _even(sum(self._files.values()))

        def send(path: str) -> None:
            parts = [view for of, _, view in self._ranges() if of == path]
            several = len(parts) > 1
            obstore.put(
                self._store,
                path,
                iter(parts),
                use_multipart=several,
                chunk_size=size,
                max_concurrency=CONNECTIONS,
            )

        list(self._threads.map(send, self._files))

    def restore(self) -> None:
        """Read both objects into the memory that they came from."""
        self._read(list(self._ranges()))

    def restore_model(self) -> None:
        """Read the object of the model alone."""
        (path, length), *_ = self._files.items()
        size = _even(length)
        starts = range(0, length, size)
        self._read([(path, at, self._memory[at : min(at + size, length)]) for at in starts])

    def _read(self, ranges: list[tuple[str, int, memoryview]]) -> None:
        def read(wanted: tuple[str, int, memoryview]) -> None:
            path, offset, memory = wanted
            found = obstore.get_range(self._store, path, start=offset, length=len(memory))
            memory[:] = memoryview(found)

        list(self._threads.map(read, ranges))


def _even(total: int) -> int:
    rounds = max(1, math.ceil(total / (CONNECTIONS * _MOST)))
    return max(_LEAST, math.ceil(total / (CONNECTIONS * rounds)))
