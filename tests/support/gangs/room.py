"""How much room a rank makes for what it restores: that of its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import same_bytes
from ray_imuckpt import Checkpointer, StateMismatchError
from support.gangs.common import error_of, local
from support.gangs.reading import ONE, ROWS, build, nothing_is_small, saved, state, step
from tools.allocations import allocations


@contextmanager
def rooms() -> Iterator[list[int]]:
    """Give at the end the bytes of each matrix that was made: windows are no matrices."""
    made = list[int]()
    with allocations() as all_of_them:
        yield made
    made += (each.nbytes if each.dimensions > 1 else 0 for each in all_of_them)


def no_rank_makes_room_for_the_whole(directory: Path, rank: int) -> None:
    """A restore makes nothing that is larger than a rank's part, of another dtype neither."""
    expected = saved(directory, rank, ROWS)
    largest = max(t.nbytes for n, t in expected.items() if n.startswith("0.weight"))
    for stepped, dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16)):
        run = build(2, dtype=dtype)
        if stepped:
            step(run)
        live = [local(p).data_ptr() for p in run[0].parameters()]
        with nothing_is_small(2000), rooms() as made:
            Checkpointer(directory).start(*run)
        assert max(made) < largest, (stepped, max(made), largest)
        assert live == [local(p).data_ptr() for p in run[0].parameters()]
        wanted = {
            n: t.to(dtype) if n in run[0].state_dict() and t.is_floating_point() else t
            for n, t in expected.items()
        }
        assert same_bytes(state(run), wanted), dtype
        for values in run[1].state.values():
            moment = local(values["exp_avg"])
            assert moment.untyped_storage().nbytes() == moment.nbytes


def a_spread_optimizer_reads_what_it_steps(directory: Path, rank: int) -> None:
    """A `ZeroRedundancyOptimizer` makes room on each rank for the state of its own part."""
    expected = saved(directory, rank, ONE)
    model = DistributedDataParallel(build(2, sharded=False)[0])
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1)
    with nothing_is_small(2000), rooms() as made:
        Checkpointer(directory).start(model, optimizer)
    names = {parameter: name for name, parameter in model.module.named_parameters()}
    moments: dict[str, Any] = {
        f"{names[p]}.{key}": value
        for p, s in optimizer.optim.state.items()
        for key, value in s.items()
    }
    assert same_bytes(moments, {name: expected[name] for name in moments})
    assert 0 < len(moments) < 3 * len(names)
    matrices = [t for name, t in moments.items() if t.dim() == 2]
    assert sum(made) == sum(t.nbytes for t in matrices)


def objects_that_are_spread_are_read_by_parts(directory: Path, rank: int) -> None:
    """An average of the model, and a second model with its optimizer, by keyword."""
    run, second = build(1), build(2)
    mean = build(3)
    for each in (run, second):
        step(each)
    checkpointer = Checkpointer(directory, blocking=True)
    other: Any = {"average": mean[0], "second": second[0], "second_optimizer": second[1]}
    checkpointer.checkpoint(1, model=run[0], optimizer=run[1], note=torch.arange(3), **other)
    expected = [state(run), state(second), state(mean)]
    for stepped in (False, True):
        again, also = build(4), build(5)
        mean = build(6)
        if stepped:
            step(also)
        live = [local(p).data_ptr() for m in (also[0], mean[0]) for p in m.parameters()]
        with nothing_is_small(2000), rooms() as made:
            started = checkpointer.start(
                *again, average=mean[0], second=also[0], second_optimizer=also[1]
            )
        assert started.other["second"] is also[0]
        assert torch.equal(started.other["note"], torch.arange(3))
        assert max(made) < expected[0]["0.weight"].nbytes, (max(made), stepped)
        assert live == [local(p).data_ptr() for m in (also[0], mean[0]) for p in m.parameters()]
        found = [state(again), state(also), state(mean)]
        assert same_bytes(found, expected), stepped
        step(also)
    unfit = nn.Linear(2, 2)
    fully_shard(unfit, mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    error = error_of(lambda: checkpointer.start(*build(4), second=unfit))
    assert isinstance(error, StateMismatchError), error
    assert "weight" in str(error)
