"""One gang that saves and restores, in processes of its own, and what that took of the worst rank.

python -m benchmarks.gangs.ranks JSON       what to do: the fields of `Task`; prints JSON
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gangs import states
from benchmarks.gangs.contenders import CONTENDERS, Contender
from benchmarks.memory import forget_peak, status
from tools.allocations import Allocation, allocations

_COLLECTIVES = (
    *("all_gather", "gather", "broadcast", "all_reduce", "scatter", "barrier"),
    "all_to_all_single",
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a gang is to do.

    Attributes:
        contender: A name of `CONTENDERS`.
        kind: Of `states.KINDS`.
        ranks: Of the gang.
        megabytes: Of the state, of all ranks.
        url: A directory of its own.
        repeats: Of each save and restore.
        options: More arguments of the contender.
        restores: Whether it restores as well.
        device: Where the state is; all ranks share the first GPU for ``"cuda"``.
    """

    contender: str
    kind: str
    ranks: int
    megabytes: float
    url: str
    repeats: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    restores: bool = True
    device: str = "cpu"


class Cost(NamedTuple):
    """What a save and a restore took; seconds are medians of what the slowest rank took.

    Attributes:
        stall: Seconds that training stood still.
        durable: Seconds until the save had ended on all ranks.
        restore: Seconds; 0 where none was asked for.
        save_memory: The peak of a rank's resident set above what was there before its first save,
            in multiples of what the rank has to save.
        restore_memory: The same of its first restore.
        collectives: Calls of torch.distributed by one save.
        save_largest: The largest piece of host memory that `torch.empty` gave for its first save,
            in multiples of what the rank has to save.
        restore_largest: The same of its first restore.
    """

    stall: float
    durable: float
    restore: float
    save_memory: float
    restore_memory: float
    collectives: int
    save_largest: float
    restore_largest: float


def measure(task: Task) -> Cost:
    """Let a gang do a task, and return what that took."""
    command = [sys.executable, "-m", "benchmarks.gangs.ranks", json.dumps(dataclasses.asdict(task))]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return Cost(*json.loads(told.stdout.splitlines()[-1]))


def main(task: Task) -> None:
    """Start the ranks."""
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_rank, (task, str(Path(directory, "store"))), nprocs=task.ranks)


def _rank(rank: int, task: Task, store: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    gang = task.ranks > 1 or task.kind == states.FSDP2
    if gang:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=task.ranks
        )
    if task.device == "cuda":
        torch.cuda.set_device(0)
    model, optimizer = states.build(task.kind, task.megabytes, task.device)
    own = states.share(model, optimizer) / 1_000_000
    contender = CONTENDERS[task.contender](task.url, model, optimizer, **task.options)
    rows = [
        [*_save(contender, own), *_restore(contender, own, task)] for _ in range(task.repeats + 1)
    ]
    calls = _collectives_of_a_save(contender)
    worst = _worst(rows)
    warm = worst[1:] or worst  # the first maps memory, and compares what ranks hold
    stall, durable, restore = (statistics.median(row[of] for row in warm) for of in (0, 1, 4))
    _, _, save_memory, save_largest, _, restore_memory, restore_largest = worst[0]
    cost = Cost(
        stall, durable, restore, save_memory, restore_memory, calls, save_largest, restore_largest
    )
    if rank == 0:
        print(json.dumps(cost), flush=True)
    if gang:
        dist.barrier()
        dist.destroy_process_group()


def _save(contender: Contender, own: float) -> list[float]:
    before = _quiet()
    with allocations() as made:
        began = time.perf_counter()
        contender.begin()
        stall = time.perf_counter() - began
        contender.end()
        durable = time.perf_counter() - began
    return [stall, durable, (status("VmHWM") - before) / own, _largest(made) / own]


def _restore(contender: Contender, own: float, task: Task) -> list[float]:
    if not task.restores:
        return [0.0, 0.0, 0.0]
    before = _quiet()
    with allocations() as made:
        began = time.perf_counter()
        contender.restore()
        _idle()
        seconds = time.perf_counter() - began
    return [seconds, (status("VmHWM") - before) / own, _largest(made) / own]


def _largest(made: Sequence[Allocation]) -> float:
    """Return the megabytes of the largest piece of host memory."""
    return max((each.nbytes for each in made if each.device == "cpu"), default=0) / 1_000_000


def _idle() -> None:
    """Return when the GPU has done what it was asked, if one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _quiet() -> float:
    """Bring what was written to the disk, let all ranks come, and return the resident set in MB."""
    os.sync()
    _idle()
    if dist.is_initialized():
        dist.barrier()
    forget_peak()
    return status("VmRSS")


def _collectives_of_a_save(contender: Contender) -> int:
    """Save once more, and return how often torch.distributed was called meanwhile."""
    calls: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return call(*arguments, **options)

        return counted

    kept = {name: getattr(dist, name) for name in _COLLECTIVES}
    for name, call in kept.items():
        setattr(dist, name, counting(name, call))
    try:
        contender.begin()
        contender.end()
    finally:
        for name, call in kept.items():
            setattr(dist, name, call)
    return calls.total()


def _worst(rows: list[list[float]]) -> list[list[float]]:
    """Return for each repeat the largest figures of all ranks."""
    if not dist.is_initialized():
        return rows
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rows)
    return [[max(of) for of in zip(*ranks, strict=True)] for ranks in zip(*everyone, strict=True)]


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
