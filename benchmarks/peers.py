"""The same state saved and loaded by others, as their documentation says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn


def savers(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Callable[[], object]]:
    """Blocking saves by name."""

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def ray_recipe() -> None:
        with tempfile.TemporaryDirectory(dir=root) as directory:
            torch.save(state(), Path(directory, "state.pt"))
            target = root / "ray-recipe"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            pyarrow.fs.copy_files(directory, str(target), chunk_size=64 * 1024 * 1024)

    def dcp_save() -> None:
        shutil.rmtree(root / "dcp", ignore_errors=True)
        dcp.save(state(), checkpoint_id=str(root / "dcp"), no_dist=True)

    return {
        "torch.save": lambda: torch.save(state(), root / "state.pt"),
        "dcp.save": dcp_save,
        "Ray's recipe": ray_recipe,
    }


def loaders(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Callable[[], object]]:
    """Loads of what `savers` saved, into the same objects."""

    def torch_load() -> None:
        state = torch.load(root / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def dcp_load() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=str(root / "dcp"), no_dist=True)

    return {"torch.load": torch_load, "dcp.load": dcp_load}


class DcpAsync:
    """torch's own background save; it needs a process group with a CPU backend."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._path, self._model, self._optimizer = path, model, optimizer
        self._pending: Any = None
        dist.init_process_group("gloo", init_method=f"file://{path}.group", rank=0, world_size=1)

    def begin(self) -> None:
        """The stall."""
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        self._pending = dcp.async_save(state, checkpoint_id=str(self._path))

    def wait(self) -> None:
        """The rest of it."""
        self._pending.result()
        shutil.rmtree(self._path, ignore_errors=True)

    def close(self) -> None:
        """Give back the process group."""
        dist.destroy_process_group()
