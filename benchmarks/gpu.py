"""The stall and restore of CUDA tensors, beside the pinned copy that is their limit. Needs no Ray.

    python -m benchmarks.gpu                  # 4 GB of AdamW state on the first GPU
    python -m benchmarks.gpu --device cpu     # its gangs alone, to see that they run

`torch.save`, `dcp.async_save` with its pinned staging, and `torch.load` run beside. Gangs of one
and of two ranks hold FSDP2's shards on the one GPU; host memory is told in multiples of a rank's
share: no piece of a save's is larger than that.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from benchmarks.gangs import states
from benchmarks.gangs.contenders import CONTENDERS, OURS
from benchmarks.gangs.ranks import Cost, Task, measure
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
        checkpointer = Checkpointer(root / kind, progress=False, snapshot=kind)
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

    checkpointer = Checkpointer(root / "eager", progress=False)

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
    checkpointers = {
        kind: Checkpointer(root / f"step-{kind}", progress=False, snapshot=kind) for kind in KINDS
    }

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
_GANG = (
    f"{states.FSDP2} on one device", "stall s", "durable s", "restore s", "host memory of a save",
    "largest piece of it", "host memory of a restore", "largest piece of it",
)  # fmt: skip


def gangs(
    root: Path,
    megabytes: float,
    repeats: int,
    device: str,
    *,
    ranks: Sequence[int] = (1, 2),
    contenders: Sequence[str] = tuple(CONTENDERS),
) -> dict[tuple[int, str], Cost]:
    """What FSDP2 costs where all ranks hold their shards on one device, and meet by gloo.

    Host memory is the growth of the resident set, in which the kernel may not count what is pinned;
    its largest piece is what torch was asked for.
    """
    print(f"\n| {' | '.join(_GANG)} |\n|{'---|' * len(_GANG)}")
    costs = {}
    for size in ranks:
        for name in contenders:
            url = str(root / f"gang-{size}-{name}")
            task = Task(name, states.FSDP2, size, megabytes, url, repeats, device=device)
            try:
                cost = costs[size, name] = measure(task)
            except subprocess.CalledProcessError as error:  # gloo may refuse a device, say
                print(f"| {size} rank(s), {name} | failed: {error} |", flush=True)
                continue
            largest = [cost.save_largest, cost.restore_largest]
            of_save, of_restore = (f"{n:.2f}" if name == OURS else "?" for n in largest)
            cells = [
                f"{cost.stall:.3f}", f"{cost.durable:.2f}", f"{cost.restore:.2f}",
                f"{cost.save_memory:.2f}", of_save, f"{cost.restore_memory:.2f}", of_restore,
            ]  # fmt: skip
            print(f"| {size} rank(s), {name} | {' | '.join(cells)} |", flush=True)
    return costs


def main() -> None:
    """Run all tables; without a GPU those of gangs alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--megabytes", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    root = Path(tempfile.mkdtemp(prefix="imuckpt-gpu-", dir=options.dir))
    try:
        if options.device == "cuda":
            _alone(root, options)
        gangs(root, options.megabytes, options.repeats, options.device)
    finally:
        shutil.rmtree(root)


def _alone(root: Path, options: argparse.Namespace) -> None:
    """Run the tables of one process."""
    if not torch.cuda.is_available():
        raise SystemExit("No CUDA device was found; --device cpu runs the tables of gangs.")
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
        torch.cuda.empty_cache()  # the gangs use the same device


if __name__ == "__main__":
    main()
