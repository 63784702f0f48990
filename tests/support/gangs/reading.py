"""How a gang reads: each chunk once, on one rank, into what that rank holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from conftest import same_bytes
from ray_imuckpt import Checkpointer, CorruptCheckpointError, ImuckptError
from ray_imuckpt.errors import StorageError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import filling, reader
from ray_imuckpt.loading.rows import Row
from ray_imuckpt.storage.local import LocalStorage
from support.gangs.common import error_of, full, same_everywhere
from support.gangs.meetings import counting
from support.pieces import Cut, Sharded, Share, along, grid

Read = tuple[str, int, int]
"""A file, the first byte that was read of it, and how many."""
PARTS = {"model", "optimizer"}
Run = tuple[nn.Module, torch.optim.Optimizer]
Layers = Sequence[tuple[int, int]]
"""How many features go into each layer, and come out."""


UNEVEN = [(40, 33), (33, 1), (1, 24)]
"""Layers, of one of which rank 1 holds nothing."""


def build(
    seed: int, *, sharded: bool = True, dtype: torch.dtype = torch.float32, layers: Layers = UNEVEN
) -> Run:
    """Return a model and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(*layer) for layer in layers)).to(dtype)
    model.register_buffer("seen", torch.tensor(seed))
    if sharded:
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (*model.children(), model):
            fully_shard(layer, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(run: Run) -> None:
    """Make one step, whose gradients are the same on every rank."""
    model, optimizer = run
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * number + 0.1)
    optimizer.step()
    optimizer.zero_grad()


def state(run: Run) -> dict[str, Any]:
    """Return all tensors of model and optimizer, whole."""
    model, optimizer = run
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Any] = dict(model.state_dict())
    for parameter, values in optimizer.state.items():
        found |= {f"{names[parameter]}.{key}": value for key, value in values.items()}
    return {n: full(t) if hasattr(t, "full_tensor") else t.clone() for n, t in found.items()}


def by_rows(name: str, shape: tuple[int, ...]) -> list[Share]:
    """Cut tensors as two ranks of FSDP2 hold them."""
    if not shape or name.startswith("ranks."):
        return [(0, (0,) * len(shape), shape)]
    half = -(-shape[0] // 2)
    rest = (1, (half, *[0] * (len(shape) - 1)), (shape[0] - half, *shape[1:]))
    return [(0, (0,) * len(shape), (half, *shape[1:])), rest]


def of_one(cut: Cut) -> Cut:
    """Cut what a gang has saved: `Sharded` gives all ranks the state of rank 0."""
    others = tuple(f"ranks.{rank}." for rank in (1, 2, 3))
    return lambda name, shape: [] if name.startswith(others) else cut(name, shape)


ONE = 2, of_one(lambda _, shape: [(0, (0,) * len(shape), shape)])
ROWS, GRID = (2, of_one(by_rows)), (4, of_one(grid))
THIRDS = 4, of_one(lambda name, shape: along(0, 3)(name, shape) if shape else [(3, (), ())])


def saved(
    directory: Path, rank: int, *cuts: tuple[int, Cut], layers: Layers = UNEVEN
) -> dict[str, Any]:
    """Save an epoch for each cut, cut so; return what was saved in the last."""
    run = build(1, sharded=False, layers=layers)  # which rank 0 writes alone
    checkpointer = Checkpointer(directory, blocking=True)
    for epoch, cut in enumerate(cuts, 1):
        step(run)
        checkpointer.checkpoint(epoch, model=run[0], optimizer=run[1])
        if rank == 0:
            Sharded(directory / f"checkpoint={epoch}", *cut).write()
        dist.barrier()
    return state(run)


@contextmanager
def nothing_is_small(window: int = filling.WINDOW, small: int = 0) -> Iterator[None]:
    """Read no file of tensors whole, as of a large checkpoint; or only those of a small state."""
    before = reader._SMALL, filling.WINDOW
    reader._SMALL, filling.WINDOW = small, window
    try:
        yield
    finally:
        reader._SMALL, filling.WINDOW = before


@contextmanager
def watched() -> Iterator[list[Read]]:
    """Give what this rank reads of data files while it does."""
    real, reads = LocalStorage.read_into, list[Read]()

    def read_into(self: Any, name: str, offset: int, views: Any, seen: Any) -> None:
        reads.append((name, offset, sum(map(len, views))))
        real(self, name, offset, views, seen)

    LocalStorage.read_into = read_into  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        LocalStorage.read_into = real  # type: ignore[method-assign]


def of_all(reads: list[Read]) -> list[list[Read]]:
    """Return what each rank has read."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, reads)
    return everyone


def each_chunk_is_read_by_one_rank(directory: Path, rank: int) -> None:
    """Whatever the layout, in two windows and more; and where only rank 0 sees the storage."""
    for name, cut in (("one", ONE), ("rows", ROWS), ("grid", GRID)):
        expected = saved(directory / name, rank, cut)
        files = Checkpointer(directory / name).read(1).manifest.files
        sizes = {f.name: f.size for f in files if f.part in PARTS}
        heads = {f.name: f.header_size for f in files}
        for sees, window in ((True, 64 * 2**20), (True, 3000), (False, 5000)):
            run = build(2)
            if window == 3000:
                step(run)
            mine = directory / (name if rank == 0 or sees else "not-mounted-here")
            with nothing_is_small(window, 40_000 * (window > 2**20)), watched() as reads:
                start = partial(Checkpointer(mine).start, *run)
                _, meetings = counting(start)
            assert same_bytes(state(run), expected)
            assert window < 2**20 or meetings <= 11, meetings
            everyone = of_all(reads)
            assert sees == bool(everyone[1])
            chunks = [one for reads in everyone for one in reads if one[2] != heads[one[0]]]
            assert len(set(chunks)) == len(chunks), "one was read twice"
            large = [one for one in chunks if one[0].split("-")[0] in PARTS]
            data = sum(size - heads[file] for file, size in sizes.items())
            assert data <= sum(size for _, _, size in large) <= sum(sizes.values())
            if cut is ROWS and sees:  # rank 1 reads its own files, and a part of what all need
                zero, one = (
                    {file.split(".")[0] for file, _, n in r if n != heads[file]} for r in everyone
                )
                assert {name.split("-")[0] for name in one if name.endswith("-1")} >= PARTS
                assert {name.split("-")[0] for name in zero if name.endswith("-1")} == {"state"}


@contextmanager
def weighed() -> Iterator[list[int]]:
    """Give the bytes of each chunk or row of chunks that came from another rank."""
    to_all, to_some, came = Gang.broadcast_each, Gang.all_to_all, list[int]()

    def broadcast_each(self: Gang, parts: Any) -> None:
        came.extend(len(part) for sender, part in parts if sender != self.rank)
        to_all(self, parts)

    def all_to_all(self: Gang, outgoing: Any, sent: Any, incoming: Any, received: Any) -> None:
        came.extend(received)
        to_some(self, outgoing, sent, incoming, received)

    Gang.broadcast_each, Gang.all_to_all = broadcast_each, all_to_all  # type: ignore[method-assign]
    try:
        yield came
    finally:
        Gang.broadcast_each, Gang.all_to_all = to_all, to_some  # type: ignore[method-assign]


def what_some_ranks_need_goes_to_them_alone(directory: Path, rank: int) -> None:
    """A third of each layer in a file, a quarter on a rank: each chunk is of use to two of four.

    It comes from one of the two, so that little more than the state goes from rank to rank; where
    only rank 0 sees the storage, what the others need. What one cannot read is an error on all.
    """
    layers = [(16, 24), (24, 24), (24, 24), (24, 24), (24, 16)]
    expected = saved(directory, rank, THIRDS, THIRDS, layers=layers)
    files = Checkpointer(directory).read(2).manifest.files
    size = sum(file.size - file.header_size for file in files if file.part in PARTS)
    logging.disable(logging.WARNING)  # of another number of ranks
    for sees, most in ((True, 1.25 * size), (False, 2.3 * size)):
        run = build(2, layers=layers)
        mine = directory if rank == 0 or sees else directory / "not-mounted-here"
        with nothing_is_small(3000, 40_000), weighed() as came:
            Checkpointer(mine).start(*run)
        assert same_bytes(state(run), expected)
        total: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(total, sum(came))
        assert size / 2 < sum(total) < most, (total, size)
    if rank == 0:
        path = max((directory / "checkpoint=2").glob("optimizer-*-1.safetensors"))
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    dist.barrier()
    with nothing_is_small(3000, 40_000):
        error = error_of(lambda: Checkpointer(directory).start(*run, continue_from=2))
    assert isinstance(error, CorruptCheckpointError), error
    same_everywhere(str(error))
    with nothing_is_small(3000, 40_000):
        assert Checkpointer(directory).start(*run).start_epoch == 2
    logging.disable(logging.NOTSET)


def what_one_rank_cannot_read_is_an_error_on_all(directory: Path, rank: int) -> None:
    """A damaged chunk that rank 1 alone needs, or that all do: all fall back together."""
    saved(directory, rank, ROWS, ROWS, ROWS)
    before = Checkpointer(directory).read(1)
    for epoch, part in ((3, "model-"), (2, "optimizer-")):
        if rank == 0:
            path = max((directory / f"checkpoint={epoch}").glob(f"{part}*.safetensors"))
            data = bytearray(path.read_bytes())
            data[-9] ^= 1
            path.write_bytes(data)
        dist.barrier()
        run = build(2)
        with nothing_is_small():
            error = error_of(lambda: Checkpointer(directory).start(*run, continue_from=epoch))  # noqa: B023
        assert isinstance(error, CorruptCheckpointError), error
        same_everywhere(str(error))
        assert not run[1].state
    logging.disable(logging.WARNING)
    with nothing_is_small():
        assert Checkpointer(directory).start(*run).start_epoch == 2
    logging.disable(logging.NOTSET)
    assert same_bytes({n: full(t) for n, t in run[0].named_parameters()},
                      {n: t for n, t in before.model.items() if n != "seen"})  # fmt: skip

    def read_all(self: Any, readings: Any) -> None:
        raise StorageError("the disk of one rank", url=self.url)

    def put(self: Any, *_: Any) -> None:
        raise RuntimeError("the memory of one rank")

    for owner, name, fails, told in (
        (LocalStorage, "read_all", read_all, "the disk of one rank"),
        (Row, "put", put, "the memory of one rank"),
    ):
        real = getattr(owner, name)
        if rank == 1:
            setattr(owner, name, fails)
        try:
            for shared in (True, False) if fails is read_all else (True,):
                run = build(2, sharded=not shared)
                start = partial(Checkpointer(directory).start, *run, continue_from=1)
                with nothing_is_small(2000):
                    error = error_of(start)
                assert isinstance(error, ImuckptError), error
                assert told in str(error)
                same_everywhere(str(error))
        finally:
            setattr(owner, name, real)


def one_rank_loads_its_part_alone(directory: Path, rank: int) -> None:
    """`load` is no collective, and reads of the model what the rank holds of it."""
    expected = saved(directory, rank, ROWS)
    run = build(2)
    if rank == 1:
        with nothing_is_small(), watched() as reads:
            Checkpointer(directory).load(run[0], 1)
        assert all(name.startswith("model-") for name, _, _ in reads)
        large = [name for name, _, size in reads if size == 1000]
        assert large
        assert sum("-0." in name for name in large) == 1, "the buffer, of which there is one"
    dist.barrier()
    if rank == 0:
        Checkpointer(directory).load(run[0], 1)
    assert same_bytes({n: full(t) for n, t in run[0].named_parameters()},
                      {n: expected[n] for n, _ in run[0].named_parameters()})  # fmt: skip
