"""What saves and restores cost at sizes that no machine at hand has: calculated, nothing measured.

    python -m benchmarks.scale        prints the tables of docs/scale.md

`Constants` holds what was measured (docs/performance.md), `Cluster` what is assumed of machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_GB = 1e9
_BYTES = 12  # of a parameter, in float32, and AdamW's two moments
_STREAMS = 16  # connections of a process


@dataclass(frozen=True)
class Model:
    """A model to be trained.

    Attributes:
        name: What it is called.
        parameters: How many numbers.
        tensors: In how many parameters they are; the state has three times as many.
    """

    name: str
    parameters: float
    tensors: int

    @property
    def state(self) -> float:
        """Return the bytes of weights and moments."""
        return self.parameters * _BYTES


MODELS = (Model("7B", 7e9, 291), Model("70B", 70e9, 723))


@dataclass(frozen=True)
class Cluster:
    """The machines; assumed, not measured.

    Attributes:
        gpus: Ranks, one for each GPU.
        node: GPUs of a machine.
        pinned: Bytes a second from a GPU to pinned memory (PCIe 4, 16 lanes).
        link: Bytes a second of a machine's network card (100 Gb/s).
        stream: Bytes a second of one connection to the object store.
        trip: Seconds of one request to it.
        meeting: Seconds of a meeting of all ranks, by gloo over TCP.
    """

    gpus: int = 64
    node: int = 8
    pinned: float = 20 * _GB
    link: float = 12.5 * _GB
    stream: float = 50e6
    trip: float = 0.03
    meeting: float = 0.005


@dataclass(frozen=True)
class Constants:
    """Figures that were measured on two cores; docs/performance.md says how.

    Attributes:
        tensor: Seconds of a stall for each tensor.
        meetings: Meetings of a save.
        save: Of the connections' rate, what a save reaches.
        restore: The same of a restore.
        trips: Round trips of a save one after the other, receipts among them.
        ranks: Round trips of a restore.
        pageable: Bytes a second of `dcp.async_save`'s copy into fresh memory.
        snapshot: Bytes a second of `torchsnapshot.async_take`'s copy.
        dcp_restore: Bytes a second of a rank's `dcp.load` by fsspec, at 30 ms a request.
    """

    tensor: float = 4e-6
    meetings: int = 3
    save: float = 0.80
    restore: float = 0.88
    trips: int = 6
    ranks: int = 4
    pageable: float = 3.8 * _GB
    snapshot: float = 1.7 * _GB
    dcp_restore: float = 13e6


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one way to do it, for each rank.

    Attributes:
        name: Of the way.
        stall: Seconds that training stands still.
        durable: Seconds until a save is committed.
        restore: Seconds into the same layout.
        memory: Bytes of host memory beside the training's.
    """

    name: str
    stall: float
    durable: float
    restore: float
    memory: float


def process_rate(cluster: Cluster, streams: int) -> float:
    """Return a rank's bytes a second to the store: by its connections, or its part of the link."""
    return min(streams * cluster.stream, cluster.link / cluster.node)


def costs(model: Model, cluster: Cluster, measured: Constants) -> Iterable[Cost]:
    """Yield what each way takes for a model, sharded over all ranks by FSDP2."""
    share = model.state / cluster.gpus
    rate = process_rate(cluster, _STREAMS)
    taking = 3 * model.tensors * measured.tensor + measured.meetings * cluster.meeting
    stall = share / cluster.pinned + taking
    looks = math.ceil((cluster.gpus - 1) / _STREAMS) + measured.trips
    durable = stall + share / (rate * measured.save) + looks * cluster.trip
    restore = share / (rate * measured.restore) + measured.ranks * cluster.trip
    yield Cost("ray_imuckpt", stall, durable, restore, share)
    one = process_rate(cluster, 1)
    stall = share / measured.pageable + taking
    yield Cost(
        "dcp.async_save, fsspec", stall, stall + share / one, share / measured.dcp_restore, share
    )
    stall = share / measured.snapshot + taking
    yield Cost("torchsnapshot.async_take", stall, stall + share / rate, share / rate, share)
    whole = model.state / rate
    yield Cost("all on rank 0", model.state / cluster.pinned, whole, whole, model.state)


@dataclass(frozen=True)
class Passing:
    """Bytes that go from rank to rank in a restore, and the time of that.

    Attributes:
        name: Which layout follows which.
        received: Bytes that a rank receives, on the average.
        seconds: Of the network card of a machine, which all its ranks share.
    """

    name: str
    received: float
    seconds: float


def passings(model: Model, cluster: Cluster) -> Iterable[Passing]:
    """Yield what goes from rank to rank: one of those that need a chunk reads it for the others."""
    gpus, node = cluster.gpus, cluster.node
    layouts = [(f"FSDP2 on {gpus} ranks again", 0.0)]
    layouts += [(f"FSDP2 on {ranks} ranks", part_cut(gpus, ranks) / ranks) for ranks in (32, 48)]
    layouts += [
        (f"{node} replicas of {gpus // node} shards (HSDP)", needed_by(node, gpus)),
        ("cut along another dimension", needed_by(gpus, gpus)),
    ]
    for name, part in layouts:
        received = part * model.state
        yield Passing(name, received, received * cluster.node / cluster.link)


def part_cut(before: int, now: int) -> float:
    """Return which part of the state lies in pieces that two ranks of the smaller gang need.

    A dimension is cut evenly into `before` pieces, then into `now`, which are fewer: each new cut
    that was none before goes through one old piece.
    """
    return (now - math.gcd(before, now)) / before


def needed_by(ranks: int, gpus: int) -> float:
    """Return which part of the state a rank receives where so many ranks need each chunk of it.

    It goes to one rank less, since one has read it.
    """
    return (ranks - 1) / gpus


def main() -> None:
    """Print the tables."""
    print("\n".join(tables()))


def tables() -> Iterable[str]:
    """Yield the lines of the tables."""
    cluster, measured = Cluster(), Constants()
    for model in MODELS:
        yield (
            f"| {model.name} on {cluster.gpus} GPUs, {size(model.state)} of state "
            "| stall s | durable s | restore s | host memory of a rank |"
        )
        yield "|---|---|---|---|---|"
        for cost in costs(model, cluster, measured):
            seconds = f"{cost.stall:.2f} | {cost.durable:.1f} | {cost.restore:.1f}"
            yield f"| {cost.name} | {seconds} | {size(cost.memory)} |"
        yield ""
    yield "| restored into | a rank receives, 7B | s | 70B | s |"
    yield "|---|---|---|---|---|"
    for small, large in zip(*(passings(model, cluster) for model in MODELS), strict=True):
        cells = (f"{size(one.received)} | {one.seconds:.0f}" for one in (small, large))
        yield f"| {small.name} | {' | '.join(cells)} |"


def size(count: float) -> str:
    """Return a number of bytes as text."""
    return f"{count / _GB:.1f} GB" if count < 100 * _GB else f"{count / _GB:.0f} GB"


if __name__ == "__main__":
    main()
