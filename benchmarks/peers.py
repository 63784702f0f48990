"""The same state saved and loaded by others, as their documentation says."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from benchmarks.measure import Rows

try:
    import torchsnapshot
except ImportError:  # not with the versions that are installed
    HAS_TORCHSNAPSHOT = False
else:
    HAS_TORCHSNAPSHOT = True


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

    found: dict[str, Callable[[], object]] = {
        "torch.save": lambda: torch.save(state(), root / "state.pt"),
        "dcp.save": dcp_save,
        "Ray's recipe": ray_recipe,
    }
    if HAS_TORCHSNAPSHOT:

        def take() -> None:
            shutil.rmtree(root / "torchsnapshot", ignore_errors=True)
            torchsnapshot.Snapshot.take(
                path=str(root / "torchsnapshot"), app_state={"model": model, "optimizer": optimizer}
            )

        found["torchsnapshot.take"] = take
    return found


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

    found: dict[str, Callable[[], object]] = {"torch.load": torch_load, "dcp.load": dcp_load}
    if HAS_TORCHSNAPSHOT:
        found["torchsnapshot.restore"] = lambda: torchsnapshot.Snapshot(
            str(root / "torchsnapshot")
        ).restore({"model": model, "optimizer": optimizer})
    return found


def asynchronous(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
    """Background saves by name: the stall, and the wait for the rest. Needs `process_group`."""
    pending: list[Any] = []

    def dcp_begin() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        pending.append(dcp.async_save(state, checkpoint_id=str(root / "dcp-async")))

    def dcp_wait() -> None:
        pending.pop().result()
        shutil.rmtree(root / "dcp-async", ignore_errors=True)

    rows: Rows = {"dcp.async_save": (dcp_begin, dcp_wait)}
    if HAS_TORCHSNAPSHOT:
        state = {"model": model, "optimizer": optimizer}

        def begin() -> None:
            path = str(root / "torchsnapshot-async")
            pending.append(torchsnapshot.Snapshot.async_take(path=path, app_state=state))

        def wait() -> None:
            pending.pop().wait()
            shutil.rmtree(root / "torchsnapshot-async", ignore_errors=True)

        rows = {**rows, "torchsnapshot.async_take": (begin, wait)}
    return rows


@contextlib.contextmanager
def process_group(root: Path) -> Iterator[None]:
    """What `dcp.async_save` needs: a process group with a CPU backend."""
    with tempfile.NamedTemporaryFile(dir=root, delete=False) as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}.g", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
