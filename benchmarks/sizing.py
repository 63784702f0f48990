"""How long saves take on a cluster, and how often to make them: calculated, nothing measured.

    python -m benchmarks.sizing        prints the tables of docs/cluster.md

What was measured stands in `benchmarks.scale.Constants`; what is assumed of storages and of
failures, here, to be replaced by your own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.scale import MODELS, Cluster, Constants, Model, size

_SMALL = Model("1B", 1e9, 148)
_FAILURES = (("an hour", 3600.0), ("a day", 86400.0), ("30 days", 30 * 86400.0))
_INFINITE = math.inf


@dataclass(frozen=True)
class Place:
    """A storage; assumed, but for what of its rate is reached.

    Attributes:
        name: What it is called.
        process: Bytes a second that one process gets from it at most.
        machine: Bytes a second that one machine gets.
        whole: Bytes a second that it has for all.
        trip: Seconds of one request.
        save: Of these rates, what a save reaches.
        restore: The same of a restore.
        machines: How many machines see it at most.
    """

    name: str
    process: float
    machine: float
    whole: float
    trip: float
    save: float
    restore: float
    machines: float = _INFINITE


def places(cluster: Cluster, measured: Constants) -> list[Place]:
    """Return the storages: a disk of the machine, a file server, an object store."""
    streams = 16 * cluster.stream
    return [
        Place("disk", _INFINITE, 3e9, _INFINITE, 0.0, 0.83, 0.89, machines=1),
        Place("NFS", _INFINITE, cluster.link, 2e9, 0.002, 0.83, 0.89),
        Place(
            "S3", streams, cluster.link, _INFINITE, cluster.trip, measured.save, measured.restore
        ),
    ]


@dataclass(frozen=True)
class Size:
    """What a save and a restore take; sharded by FSDP2 over all workers.

    Attributes:
        stall: Seconds that training stands still.
        durable: Seconds until the save is committed.
        restore: Seconds into the same layout.
        rank: Bytes of host memory of a rank beside the training's.
        machine: The same of a machine.
    """

    stall: float
    durable: float
    restore: float
    rank: float
    machine: float

    def interval(self, between: float) -> float:
        """Return after how many seconds to save, if there are so many between two failures.

        Young's optimum, the root of 2 x cost x time between failures (Communications of the ACM
        17(9), 1974, p. 530), where the cost of a save is what it holds training up: its stall. A
        save takes until it is durable, and one is in flight at a time.
        """
        return max(math.sqrt(2 * self.stall * between), self.durable)

    def lost(self, between: float) -> float:
        """Return which part of the time is lost so: to stalls, and to failures.

        A failure costs half an interval, the save under way, and the restore.
        """
        interval = self.interval(between)
        return self.stall / interval + (interval / 2 + self.durable + self.restore) / between


def sized(model: Model, workers: int, place: Place, cluster: Cluster, measured: Constants) -> Size:
    """Return what a model takes on so many workers and a storage."""
    local = min(workers, cluster.node)
    machines = math.ceil(workers / cluster.node)
    rate = min(workers * place.process, machines * place.machine, place.whole)
    share = model.state / workers
    stall = share / cluster.pinned + 3 * model.tensors * measured.tensor
    stall += measured.meetings * cluster.meeting
    looks = math.ceil((workers - 1) / 16) + measured.trips
    durable = stall + model.state / (rate * place.save) + looks * place.trip
    restore = model.state / (rate * place.restore) + measured.ranks * place.trip
    return Size(stall, durable, restore, share, local * share)


def tables() -> Iterable[str]:
    """Yield the lines of the tables."""
    cluster, measured = Cluster(), Constants()
    small, middle, large = _SMALL, *MODELS
    rows = [
        (
            f"{model.name} on {workers}, {place.name}",
            model.state,
            sized(model, workers, place, cluster, measured),
        )
        for model, gangs in ((small, (8,)), (middle, (8, 64)), (large, (64,)))
        for workers in gangs
        for place in places(cluster, measured)
        if math.ceil(workers / cluster.node) <= place.machines
    ]
    heads = ("state", "stall s", "durable s", "restore s", "memory of a rank", "of a machine")
    yield f"| model, workers, storage | {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|---|"
    for name, state, cost in rows:
        seconds = f"{cost.stall:.2f} | {cost.durable:.0f} | {cost.restore:.0f}"
        yield f"| {name} | {size(state)} | {seconds} | {size(cost.rank)} | {size(cost.machine)} |"
    yield ""
    failures = (f"a failure in {name}" for name, _ in _FAILURES)
    yield f"| save every … s (of the time lost) | {' | '.join(failures)} |"
    yield "|---|" + "---|" * len(_FAILURES)
    for name, _, cost in rows:
        cells = " | ".join(
            f"{cost.interval(between):.0f} ({100 * cost.lost(between):.2g} %)"
            for _, between in _FAILURES
        )
        yield f"| {name} | {cells} |"


def main() -> None:
    """Print the tables."""
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
