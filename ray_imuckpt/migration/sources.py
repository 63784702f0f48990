"""Checkpoints of other programs: which one lies at a path, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ray_imuckpt.encoding.tensors import header_length, parse_header
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.migration import dcp, torch_files
from ray_imuckpt.migration.mapping import MappedFile
from ray_imuckpt.repository.paths import MANIFEST

TORCH, LIGHTNING, DCP, SAFETENSORS = "torch.save", "Lightning", "DCP", "safetensors"
_TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
_SAFETENSORS = ".safetensors"
_LIGHTNING = "pytorch-lightning_version"


@dataclass(frozen=True)
class Source:
    """A checkpoint of another program.

    Attributes:
        path: Where it is.
        kind: `TORCH`, `LIGHTNING`, `DCP` or `SAFETENSORS`.
        tree: What it holds; tensors are mapped, not read.
    """

    path: str
    kind: str
    tree: Mapping[Any, Any]


def open_source(path: str) -> Source:
    """Return what lies at a local path.

    Args:
        path: A file of ``torch.save``, of Lightning or of safetensors; or a directory of DCP or
            safetensors, or one that holds one file of ``torch.save``.

    Raises:
        UnsupportedStateError: To read it would run code.
        UnsupportedFormatError: It is none of these.
        CorruptCheckpointError: It is damaged.
        CheckpointNotFoundError: There is nothing.
        OSError: It cannot be read.
    """
    if "://" in path:
        raise UnsupportedFormatError(
            "A checkpoint is imported from a local path.", url=path, hint="Copy it here first."
        )
    if not os.path.exists(path):
        raise CheckpointNotFoundError(
            "There is nothing to import.", url=path, hint="Look at the path."
        )
    if os.path.isdir(path):
        return _of_directory(path)
    if path.endswith(_SAFETENSORS):
        return Source(path, SAFETENSORS, _tensors([path]))
    return _of_torch(path)


def _of_directory(path: str) -> Source:
    names = sorted(os.listdir(path))
    if MANIFEST in names:
        raise UnsupportedFormatError(
            "It is a checkpoint of ours already.",
            url=path,
            hint="Load it as it is, or copy the directory as a whole.",
        )
    if dcp.INDEX in names:
        return Source(path, DCP, dcp.read_directory(path))
    files = [os.path.join(path, name) for name in names if name.endswith(_SAFETENSORS)]
    if files:
        return Source(path, SAFETENSORS, _tensors(files))
    files = [os.path.join(path, name) for name in names if name.endswith(_TORCH_FILES)]
    if len(files) == 1:
        return _of_torch(files[0])
    several = f"{len(files)} files of torch.save" if files else "nothing that is known"
    raise UnsupportedFormatError(
        f"The directory holds {several}: neither DCP's {dcp.INDEX}, nor *{_SAFETENSORS}, nor one "
        f"file {' or '.join(_TORCH_FILES)}.",
        url=path,
        hint="Give the file itself." if files else "Look at the path.",
    )


def _of_torch(path: str) -> Source:
    tree = torch_files.read_file(path)
    if not isinstance(tree, Mapping):
        raise UnsupportedFormatError(
            f"The file holds a {type(tree).__name__}, not a mapping of names.",
            url=path,
            hint="Save a state_dict(), or a dict that has one.",
        )
    return Source(path, LIGHTNING if _LIGHTNING in tree else TORCH, tree)


def _tensors(paths: list[str]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        file = MappedFile(path)
        length = header_length(file.bytes(0, 8), file.size, path)
        header = parse_header(file.bytes(0, length), file.size, path)
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise CorruptCheckpointError(f"{min(twice)} is in two files.", url=path)
        for name, info in header.tensors.items():
            row = file.row(info.begin, info.end)
            tensors[name] = row.view(info.dtype).reshape(info.shape)
    return tensors
