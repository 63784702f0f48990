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
        model_path, optimizer_path = f"{directory}/model", f"{directory}/optimizer"
        self._sizes = {model_path: of_model, optimizer_path: of_optimizer}
        self._begins = {model_path: 0, optimizer_path: of_model}
        self._memory = torch.ones(of_model + of_optimizer, dtype=torch.uint8).numpy().data

    def save(self) -> None:
        """Send both objects, their parts side by side, over 16 connections in all."""
        total = len(self._memory)

        def send(path: str) -> None:
            parts = self._ranges(path, total)
            obstore.put(
                self._store,
                path,
                (memory for _, memory in parts),
                use_multipart=len(parts) > 1,
                chunk_size=len(parts[0][1]),
                max_concurrency=max(1, CONNECTIONS * self._sizes[path] // total),
            )

        list(self._threads.map(send, self._sizes))

    def _ranges(self, path: str, total: int) -> list[tuple[int, memoryview]]:
        """Return offset and memory of ranges of a file, of like size.

        Args:
            path: The file's.
            total: Bytes of all files that are sent or read together.
        """
        rounds = max(1, math.ceil(total / (CONNECTIONS * _MOST)))
        most = max(_LEAST, math.ceil(total / (CONNECTIONS * rounds)))
        memory = self._memory[self._begins[path] :][: self._sizes[path]]
        count = max(1, min(round(len(memory) / most), len(memory) // _LEAST))
        size = math.ceil(len(memory) / count)
        return [(at, memory[at : at + size]) for at in range(0, len(memory), size)]

    def restore(self) -> None:
        """Read both objects into the memory that they came from."""
        self._read(list(self._sizes))

    def restore_model(self) -> None:
        """Read the object of the model alone."""
        self._read(list(self._sizes)[:1])

    def _read(self, paths: list[str]) -> None:
        def read(wanted: tuple[str, int, memoryview]) -> None:
            path, offset, memory = wanted
            found = obstore.get_range(self._store, path, start=offset, length=len(memory))
            memory[:] = memoryview(found)

        total = sum(self._sizes[path] for path in paths)
        ranges = [(path, *found) for path in paths for found in self._ranges(path, total)]
        list(self._threads.map(read, ranges))
