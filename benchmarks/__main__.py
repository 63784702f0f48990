"""What a checkpoint costs, beside the peers and beside the limit, all in one process on one state.

    python -m benchmarks                  # 1.8 GB of AdamW state; some minutes, 10 GB of disk
    python -m benchmarks --megabytes 200

Every figure is a median. "Stall" is how long the training loop stands still, "durable" how long
until the bytes are committed and would survive a power cut, "restore" from a warm page cache into
live objects.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import ray_imuckpt
from benchmarks import limits, peers
from ray_imuckpt import Checkpointer


def build(megabytes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose weights and AdamW moments fill so many megabytes, in 576 tensors."""
    count = 192
    size = megabytes * 1_000_000 // (count * 3 * 4)
    model = nn.ParameterList(nn.Parameter(torch.randn(size)) for _ in range(count))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def median(call: Callable[[], object], repeats: int, after: Callable[[], object] = int) -> float:
    """The median time of `call`, in seconds; `after` runs between, not counted."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        after()
    return statistics.median(times[1:])  # the first one maps memory and warms caches


def table(title: str, rows: dict[str, float], limit: str) -> None:
    """Print figures in seconds and as multiples of the limit."""
    print(f"\n| {title} | s | times the limit |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.3f} | {seconds / rows[limit]:.2f} |")


def saves(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> None:
    """Stall and time until durable."""
    background = Checkpointer(root / "background")
    blocking = Checkpointer(root / "blocking", blocking=True)
    background.start(model, optimizer, continue_from="none")
    blocking.start(model, optimizer, continue_from="none")

    def begin() -> None:
        background.checkpoint(1, model=model, optimizer=optimizer)

    def whole() -> None:
        begin()
        background.wait()

    tensors = limits.tensors_of(model, optimizer)
    stall = {
        "copy into mapped memory (limit)": median(limits.copier(tensors), repeats),
        "clone() of everything": median(lambda: [t.clone() for t in tensors], repeats),
        "ray_imuckpt": median(begin, repeats, background.wait),
    }
    asynchronous = peers.DcpAsync(root / "dcp-async", model, optimizer)
    stall["dcp.async_save"] = median(asynchronous.begin, repeats, asynchronous.wait)
    asynchronous.close()
    for name, call in peers.savers(root, model, optimizer).items():
        stall[name] = median(call, repeats)
    table("stall of a save", stall, "copy into mapped memory (limit)")

    durable = {
        "raw parallel write + fsync (limit)": median(limits.writer(root / "raw", tensors), repeats),
        "ray_imuckpt, in the background": median(whole, repeats),
        "ray_imuckpt, blocking": median(
            lambda: blocking.checkpoint(1, model=model, optimizer=optimizer), repeats
        ),
    }
    for name, call in peers.savers(root, model, optimizer).items():
        durable[f"{name} + sync"] = median(lambda call=call: (call(), limits.sync()), repeats)
    table("until durable", durable, "raw parallel write + fsync (limit)")


def restores(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> None:
    """Everything, and the model alone."""
    checkpointer = Checkpointer(root / "blocking")
    directory = Path(checkpointer.path_to_checkpoint(1))
    rows = {
        "raw readinto of those bytes (limit)": median(limits.reader(directory), repeats),
        "ray_imuckpt": median(lambda: checkpointer.start(model, optimizer), repeats),
    }
    for name, call in peers.loaders(root, model, optimizer).items():
        rows[name] = median(call, repeats)
    table("full restore", rows, "raw readinto of those bytes (limit)")
    only = {
        "raw readinto of those bytes (limit)": median(limits.reader(directory, "model"), repeats),
        "ray_imuckpt.load": median(lambda: checkpointer.load(model, 1), repeats),
    }
    table("model only", only, "raw readinto of those bytes (limit)")


def main() -> None:
    """Run all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    root = Path(tempfile.mkdtemp(prefix="imuckpt-bench-", dir=options.dir))
    model, optimizer = build(options.megabytes)
    print(
        f"{options.megabytes} MB in {3 * len(list(model.parameters()))} tensors; "
        f"{limits.cores()} cores, {platform.machine()}, Linux {platform.release()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"ray_imuckpt {ray_imuckpt.__version__}; medians of {options.repeats}"
    )
    try:
        saves(root, model, optimizer, options.repeats)
        restores(root, model, optimizer, options.repeats)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
