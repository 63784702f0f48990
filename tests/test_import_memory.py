"""The memory that an import takes: of the tensors it holds none whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ray_imuckpt import Checkpointer, import_checkpoint
from support.migration import write_dcp

SIZE = 48 * 1024 * 1024  # bytes of the tensor: many chunks, and far more than noise


def own_memory() -> int:
    """Bytes that this process has for itself; what is mapped from a file is not among them."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^RssAnon:\s+([0-9]+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _torch(path: Path, tensor: torch.Tensor) -> None:
    torch.save({"model": {"w": tensor}}, path.with_suffix(".pt"))
    path.with_suffix(".pt").rename(path)


def _safetensors(path: Path, tensor: torch.Tensor) -> None:
    path.mkdir()
    save_file({"w": tensor}, path / "model.safetensors")


def _dcp(path: Path, tensor: torch.Tensor) -> None:
    half = len(tensor) // 2
    write_dcp(path, {"model/w": {(0,): tensor[:half], (half,): tensor[half:]}})


@pytest.mark.parametrize("write", [_torch, _safetensors, _dcp])
def test_no_tensor_is_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, torch.Tensor], None]
) -> None:
    """Whenever bytes go to the disk, less than a third of what is brought is in memory."""
    write(tmp_path / "source", torch.arange(SIZE // 4, dtype=torch.int32))
    seen: list[int] = []
    real = os.pwrite

    def pwrite(*arguments: Any) -> int:
        seen.append(own_memory())
        return real(*arguments)

    monkeypatch.setattr("os.pwrite", pwrite)
    before = own_memory()
    import_checkpoint(tmp_path / "source", tmp_path / "run", epoch=1)
    assert len(seen) > 2
    assert max(seen) - before < SIZE / 3
    monkeypatch.undo()
    stored = Checkpointer(tmp_path / "run").read(1).model["w"]
    assert torch.equal(stored, torch.arange(SIZE // 4, dtype=torch.int32))
