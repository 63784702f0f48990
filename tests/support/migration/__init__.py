"""Checkpoints as other programs write them, and the training that they are of."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Pieces = dict[tuple[int, ...], torch.Tensor]


class Training:
    """A model whose layers differ in kind, its optimizer and its scheduler."""

    def __init__(self, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        self.optimizer = kind(self.model.parameters(), lr=0.05)  # type: ignore[call-arg]
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)

    def train(self, epochs: int) -> Training:
        """Take so many steps, on the same numbers each time; return itself."""
        x = torch.linspace(-1, 1, 20).reshape(5, 4)
        for _ in range(epochs):
            self.optimizer.zero_grad()
            self.model(x).square().sum().backward()
            self.optimizer.step()
            self.scheduler.step()
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the model's state."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether both hold the same names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def write_dcp(directory: Path, values: dict[str, Any]) -> None:
    """Write a DCP checkpoint as a gang does, without one.

    Args:
        directory: Is made.
        values: Dotted name to a value; a tensor in pieces is offsets to each piece of it, of which
            each goes into a file of its own.
    """
    directory.mkdir()
    entries: dict[str, Any] = {}
    infos: dict[MetadataIndex, _StorageInfo] = {}
    for name, value in values.items():
        pieces: Pieces | None = value if isinstance(value, dict) else None
        if pieces is None and isinstance(value, torch.Tensor):
            pieces = {(0,) * value.dim(): value}
        if pieces is None:
            entries[name] = BytesStorageMetadata()
            infos[MetadataIndex(name)] = _append(directory / "__0_0.distcp", value)
            continue
        chunks = []
        for rank, (offsets, piece) in enumerate(pieces.items()):
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
            file = directory / f"__{rank}_0.distcp"
            infos[MetadataIndex(name, torch.Size(offsets))] = _append(file, piece)
        ends = [
            [o + s for o, s in zip(offsets, piece.shape, strict=True)]
            for offsets, piece in pieces.items()
        ]
        whole = torch.Size(map(max, zip(*ends, strict=True)))
        properties = TensorProperties(dtype=next(iter(pieces.values())).dtype)
        entries[name] = TensorStorageMetadata(properties, whole, chunks)
    paths = {name: tuple(name.split("/")) for name in values}
    index = Metadata(entries, planner_data=paths, storage_data=infos)
    (directory / ".metadata").write_bytes(pickle.dumps(index))


def _append(file: Path, value: Any) -> _StorageInfo:
    with file.open("ab") as stream:
        begin = stream.tell()
        torch.save(value, stream)
        return _StorageInfo(file.name, begin, stream.tell() - begin)
