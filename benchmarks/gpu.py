"""The stall and restore of CUDA tensors, beside the pinned copy that is their limit. Needs no Ray.

    python -m benchmarks.gpu                  # 4 GB of AdamW state on the first GPU

`torch.save`, `dcp.async_save` with its pinned staging, and `torch.load` run beside.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from benchmarks.limits import tensors_of
from benchmarks.measure import Row, Rows, alone, build, medians, table
from ray_imuckpt import Checkpointer

DOWN = "pinned device-to-host copy (limit)"
UP = "raw reads into pinned memory, then to the device (limit)"


def pinned_copier(tensors: list[torch.Tensor]) -> Rows:
    """The copy of everything into memory that was pinned before, on one stream."""
    hosts = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]

    def copy() -> None:
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        torch.cuda.synchronize()

    return {DOWN: alone(copy)}


def saves(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> None:
    """The stall: what the host waits for, the device idle before and after."""
    rows = dict(pinned_copier([t for t in tensors_of(model, optimizer) if t.is_cuda]))
    for name, kind in (("ray_imuckpt", "eager"), ("ray_imuckpt, overlap", "overlap")):
        checkpointer = Checkpointer(root / kind, snapshot=kind)
        checkpointer.start(model, optimizer, continue_from="none")
        save = partial(checkpointer.checkpoint, 1, model=model, optimizer=optimizer)
        rows[name] = (save, checkpointer.wait)

    def state() -> dict[str, object]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    stager = dcp.staging.DefaultStager(
        dcp.staging.StagingOptions(
            use_pinned_memory=True,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=True,
        )
    )
    pending: list[Any] = []

    def begin() -> None:
        target = str(root / "dcp")
        pending.append(dcp.async_save(state(), checkpoint_id=target, async_stager=stager))

    def wait() -> None:
        pending.pop().result()
        shutil.rmtree(root / "dcp", ignore_errors=True)

    rows["dcp.async_save, pinned staging"] = (begin, wait)
    rows["torch.save"] = alone(lambda: torch.save(state(), root / "state.pt"))
    table("stall of a save from the GPU", medians(rows, repeats), DOWN)


def restores(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> None:
    """From a warm page cache into live CUDA tensors."""
    tensors = [t for t in tensors_of(model, optimizer) if t.is_cuda]
    size = sum(tensor.nbytes for tensor in tensors)
    path = root / "raw"
    path.write_bytes(bytes(size))
    window = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=tensors[0].device)

    def raw() -> None:
        with path.open("rb", buffering=0) as file:
            at = 0
            while count := file.readinto(window.numpy().data):
                target[at : at + count].copy_(window[:count], non_blocking=True)
                torch.cuda.synchronize()
                at += count

    checkpointer = Checkpointer(root / "eager")

    def restore() -> None:
        checkpointer.start(model, optimizer)
        torch.cuda.synchronize()

    def load() -> None:
        state = torch.load(root / "state.pt", weights_only=True, map_location=target.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.cuda.synchronize()

    rows = {UP: alone(raw), "ray_imuckpt": alone(restore), "torch.load": alone(load)}
    table("full restore to the GPU", medians(rows, repeats), UP)
    size = sum(parameter.nbytes for parameter in model.parameters())
    target = torch.empty(size, dtype=torch.uint8, device=tensors[0].device)
    path.write_bytes(bytes(size))
    rows = {
        UP: alone(raw),
        "ray_imuckpt.load": alone(lambda: checkpointer.load(model, 1), torch.cuda.synchronize),
    }
    table("model only to the GPU", medians(rows, repeats), UP)


def steps(root: Path, repeats: int) -> None:
    """What a save adds to a training step that is longer than the copy."""
    width, rows_of_data = 8192, 16384
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4))).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(rows_of_data, width, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    checkpointers = {kind: Checkpointer(root / f"step-{kind}", snapshot=kind) for kind in KINDS}

    def with_save(kind: str) -> None:
        checkpointers[kind].checkpoint(1, model=model, optimizer=optimizer)
        step()
        torch.cuda.synchronize()

    plain = "a step without a save (limit)"
    found: dict[str, Row] = {plain: alone(step, torch.cuda.synchronize)}
    found |= {
        f"a save and a step, {kind}": (partial(with_save, kind), checkpointers[kind].wait)
        for kind in KINDS
    }
    table("a step with a save before it", medians(found, repeats), plain)


KINDS = ("eager", "overlap")


def main() -> None:
    """Run all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA device was found.")
    warnings.filterwarnings("ignore")
    root = Path(tempfile.mkdtemp(prefix="imuckpt-gpu-", dir=options.dir))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.megabytes} MB")
    dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=0, world_size=1)
    try:
        model, optimizer = build(options.megabytes, device="cuda")
        saves(root, model, optimizer, options.repeats)
        restores(root, model, optimizer, options.repeats)
        del model, optimizer
        steps(root, options.repeats)
    finally:
        dist.destroy_process_group()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
