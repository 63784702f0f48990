"""Many small tensors, and many checkpoints."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.measure import Row, alone, build, medians, table
from ray_imuckpt import Checkpointer
from ray_imuckpt.storage.engines.fsspec_engine import FsspecEngine
from ray_imuckpt.storage.remote import RemoteStorage

FEW = "100 tensors"
SCAN = "os.scandir (limit)"


def tensors(root: Path, megabytes: float, repeats: int) -> None:
    """The same bytes in 100 and in 10,000 tensors."""
    rows: dict[str, dict[str, Row]] = {}
    for name, count in ((FEW, 102), ("10,000 tensors", 10_002)):
        model, optimizer = build(megabytes, count)
        checkpointer = Checkpointer(root / name, progress=False)
        checkpointer.start(model, optimizer, continue_from="none")

        save = partial(checkpointer.checkpoint, 1, model=model, optimizer=optimizer)
        restore = partial(checkpointer.start, model, optimizer)
        rows.setdefault("stall", {})[name] = (save, checkpointer.wait)
        rows.setdefault("until durable", {})[name] = alone(save, checkpointer.wait)
        rows.setdefault("full restore", {})[name] = alone(restore)
    for title, pair in rows.items():
        found = medians(pair, repeats)
        table(f"{title}, {megabytes:.0f} MB in many tensors", found, FEW)
    for name in (FEW, "10,000 tensors"):
        shutil.rmtree(root / name)


def checkpoints(root: Path, repeats: int, count: int = 10_000) -> None:
    """Helpers that list and pick, among so many checkpoints in a local directory."""
    directory = root / "many"
    checkpointer = Checkpointer(directory, progress=False, blocking=True)
    model, _ = build(0.01, 3)
    checkpointer.checkpoint(1, model=model)
    manifest = (directory / "checkpoint=1" / "manifest.json").read_bytes()
    for epoch in range(2, count + 1):
        (directory / f"checkpoint={epoch}").mkdir()
        (directory / f"checkpoint={epoch}" / "manifest.json").write_bytes(manifest)
    rows = {
        SCAN: alone(lambda: [entry.name for entry in os.scandir(directory)]),
        "the same and a stat each": alone(
            lambda: [
                entry.name
                for entry in os.scandir(directory)
                if (Path(entry) / "manifest.json").exists()
            ]
        ),
        "list_existing_checkpoint_indices": alone(checkpointer.list_existing_checkpoint_indices),
        "index_of_last_checkpoint": alone(checkpointer.index_of_last_checkpoint),
        "index_of_last_checkpoint_prior_to": alone(
            lambda: checkpointer.index_of_last_checkpoint_prior_to(count // 2)
        ),
    }
    table(f"index calls among {count:,} checkpoints", medians(rows, repeats), SCAN)
    remote(count)


class CountingFileSystem(MemoryFileSystem):
    """A store in memory that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        """The method, counted where it would be a request to a store."""
        if name in ("find", "ls", "info", "exists", "cat_file", "open"):
            self.asked[name] += 1
        return super().__getattribute__(name)


def remote(count: int) -> None:
    """What the listing asks of an object store, which answers a `find` in pages of 1,000 keys."""
    store = CountingFileSystem()
    root = f"/imuckpt-bench-{time.time_ns()}"
    for epoch in range(1, count + 1):
        store.pipe_file(f"{root}/checkpoint={epoch}/manifest.json", b"")
    store.asked.clear()
    found = RemoteStorage(FsspecEngine(store), root).holding("manifest.json")
    print(f"\nOn an object store: {len(found):,} checkpoints found by {dict(store.asked)}")
    store.rm(root, recursive=True)
