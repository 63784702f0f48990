"""The tables of gangs: beside dcp on a local disk, and on a store that limits each process."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.gangs import states
from benchmarks.gangs.contenders import CONTENDERS, OURS
from benchmarks.gangs.ranks import Cost, Task, measure
from benchmarks.stores.tables import UNSIGNED
from benchmarks.stores.transports import CONNECTIONS
from tools.simulated_store import Settings, SimulatedStore

MOST = 600  # MB: every rank holds a part of it, and all ranks share the cores
_STORE_MEGABYTES = 480  # so that parts of 5 MiB fill the connections of four ranks
# MB/s a connection: so slow that the processors are not the limit, which the ranks share here.
_STORE_RATE = 0.5
_STORE_REPEATS = 2  # a save by one process takes a minute


def tables(root: Path, megabytes: float, repeats: int) -> None:
    """Print the tables.

    Args:
        root: A directory on the disk that is measured.
        megabytes: Of the state; at most `MOST` are taken.
        repeats: Of each save and restore.
    """
    megabytes = min(megabytes, MOST)
    for kind in states.KINDS:
        for ranks in (2, 4):
            _beside_dcp(root, kind, ranks, megabytes, repeats)
    _meetings(root, repeats)
    _store(min(repeats, _STORE_REPEATS))


def _beside_dcp(root: Path, kind: str, ranks: int, megabytes: float, repeats: int) -> None:
    heads = (
        f"{kind}, {ranks} ranks, {megabytes:.0f} MB|stall s|durable s|restore s"
        "|memory of a save|of a restore|collectives of a save"
    )
    _head(heads)
    for name in CONTENDERS:
        url = str(root / f"{kind}-{ranks}-{name}")
        cost = measure(Task(name, kind, ranks, megabytes, url, repeats))
        _row(name, _seconds(cost), f"{cost.save_memory:.2f}", f"{cost.restore_memory:.2f}", cost)


def _meetings(root: Path, repeats: int) -> None:
    """Print how the cost of meeting grows with the gang: the state is tiny."""
    _head("a tiny state|stall s|durable s|restore s|collectives of a save")
    for ranks in (1, 2, 4, 8):
        task = Task(OURS, states.DDP, ranks, 0.1, str(root / f"tiny-{ranks}"), repeats)
        cost = measure(task)
        _row(f"{ranks} rank(s)", _seconds(cost), cost)


def _store(repeats: int) -> None:
    """Print how long a save takes where each process has its own rate to the store.

    Bodies are not signed, as they are not where there is TLS.
    """
    _head(
        f"DDP, {_STORE_MEGABYTES} MB, {CONNECTIONS} connections of {_STORE_RATE} MB/s a process"
        "|durable s|of the rate|as fast as one|load"
    )
    alone = 0.0
    with SimulatedStore() as store:
        store.configure(Settings(latency=0.03, rate=_STORE_RATE * 1_000_000))
        options = {"storage_options": store.options | UNSIGNED}
        for ranks in (1, 2, 4):
            url = f"s3://{store.bucket}/ranks-{ranks}"
            task = Task(
                OURS, states.DDP, ranks, _STORE_MEGABYTES, url, repeats, options, restores=False
            )
            durable = measure(task).durable
            alone = alone or durable
            least = _STORE_MEGABYTES / (ranks * CONNECTIONS * _STORE_RATE)
            cells = f"{durable:.2f}", f"{least / durable:.0%}", f"{alone / durable:.2f}"
            _row(f"{ranks} rank(s)", *cells, f"{os.getloadavg()[0]:.0f}")


def _seconds(cost: Cost) -> str:
    return f"{cost.stall:.3f} | {cost.durable:.2f} | {cost.restore:.2f}"


def _head(heads: str) -> None:
    print(f"\n| {' | '.join(heads.split('|'))} |\n|{'---|' * (heads.count('|') + 1)}")


def _row(name: str, *cells: str | Cost) -> None:
    shown = [str(cell.collectives) if isinstance(cell, Cost) else cell for cell in cells]
    print(f"| {name} | {' | '.join(shown)} |", flush=True)
