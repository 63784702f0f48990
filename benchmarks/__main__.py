"""What a checkpoint costs, beside the peers and beside the limit, all in one process on one state.

    python -m benchmarks                      # 1.8 GB of AdamW state; a quarter hour, 20 GB of disk
    python -m benchmarks --megabytes 200
    python -m benchmarks stall restore        # some of the tables
    python -m benchmarks stores --rate 10     # an object store: at most 300 MB
    python -m benchmarks clients --rate 10    # the same by clients of a store, which save nothing
    python -m benchmarks gangs                # 2 and 4 ranks, DDP and FSDP2: at most 600 MB

Every figure is a median. "Stall" is how long the training loop stands still, "durable" how long
until the bytes are committed and would survive a power cut, "restore" from a warm page cache into
live objects. `benchmarks.sizes` draws the stall against the size, `benchmarks.gpu` is for CUDA.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

import ray_imuckpt
from benchmarks import epochs, limits, many, memory, restores, saves
from benchmarks.gangs import tables as gangs
from benchmarks.measure import build, table
from benchmarks.stores import tables as stores

TABLES = (
    *("stall", "durable", "restore", "memory", "tensors", "checkpoints", "epochs"),
    *("stores", "clients", "gangs"),
)


def main() -> None:
    """Run the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; all")
    parser.add_argument("--megabytes", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--latency", type=float, default=30, help="of stores: ms a request")
    parser.add_argument("--rate", type=float, default=50, help="of stores: MB/s a connection")
    parser.add_argument("--unsigned", action="store_true", help="of stores: bodies, as with TLS")
    options = parser.parse_args()
    chosen = options.tables or TABLES
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; choose of {', '.join(TABLES)}")
    warnings.filterwarnings("ignore")
    megabytes, repeats = options.megabytes, options.repeats
    print(
        f"{megabytes} MB in 576 tensors; "
        f"{limits.cores()} cores, {platform.machine()}, Linux {platform.release()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"ray_imuckpt {ray_imuckpt.__version__}; medians of {repeats}"
    )
    trial = stores.Trial(
        megabytes, repeats, options.latency, options.rate, unsigned=options.unsigned
    )
    root = Path(tempfile.mkdtemp(prefix="imuckpt-bench-", dir=options.dir))
    try:
        if "memory" in chosen:
            memory.tables(root, megabytes)
        _of_one_state(root, chosen, megabytes, repeats)
        if "tensors" in chosen:
            many.tensors(root, megabytes, repeats)
        if "checkpoints" in chosen:
            many.checkpoints(root, repeats)
        if "epochs" in chosen:
            epochs.tables(root, repeats)
        if "stores" in chosen:
            stores.peers(root, trial)
        if "clients" in chosen:
            stores.clients(root, trial)
        if "gangs" in chosen:
            gangs.tables(root, megabytes, repeats)
    finally:
        shutil.rmtree(root)


def _of_one_state(root: Path, chosen: Collection[str], megabytes: float, repeats: int) -> None:
    """Print the tables that share a state."""
    if not {"stall", "durable", "restore"} & set(chosen):
        return
    state = build(megabytes)
    if "stall" in chosen:
        table("stall of a save", saves.stall(root, *state, repeats), saves.COPY)
    if "durable" in chosen:
        table("until durable", saves.durable(root, *state, repeats), saves.WRITE)
    if "restore" in chosen:
        restores.tables(root, *state, repeats)


if __name__ == "__main__":
    main()
