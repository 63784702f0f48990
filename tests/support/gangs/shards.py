"""Sharded tensors of which one rank fails alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from conftest import compiled, small_model
from ray_imuckpt import Checkpointer, ImuckptError, StateMismatchError, UnsupportedStateError
from ray_imuckpt.gang import gang
from support.damage.forgeries import Forged
from support.gangs.common import error_of, local, same_everywhere


class Kept:
    """An object of one rank, with a value that may be a part of a tensor."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def _sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def _fails(*_: Any) -> None:
    raise RuntimeError("the hook of one rank")


def _same_error(call: Any, told: str) -> Exception:
    error = error_of(call)
    assert isinstance(error, ImuckptError)
    assert told in str(error), error
    same_everywhere(str(error))
    return error


def a_rank_that_fails_alone_stops_a_sharded_save(directory: Path, rank: int) -> None:
    """What one rank may fail at comes before the first gathering; the gang can save again."""
    checkpointer = Checkpointer(directory)
    model, optimizer = _sharded()
    hook = model.register_state_dict_post_hook(_fails) if rank else None
    _same_error(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer), "hook of one rank"
    )
    _same_error(lambda: checkpointer.checkpoint(1, model=nn.Linear(1, 1), average=model), "hook")
    if hook is not None:
        hook.remove()
    lost = optimizer.state.pop(next(iter(model.parameters()))) if rank else None
    error = _same_error(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer), "not there on rank 1"
    )
    assert isinstance(error, StateMismatchError)
    if lost is not None:
        optimizer.state[next(iter(model.parameters()))] = lost
    hook = optimizer.register_state_dict_post_hook(_fails) if rank else None
    _same_error(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer), "hook of one rank"
    )
    if hook is not None:
        hook.remove()

    replicated = DistributedDataParallel(small_model())
    spread = ZeroRedundancyOptimizer(replicated.parameters(), torch.optim.SGD, lr=0.1)
    hook = spread.optim.register_state_dict_post_hook(_fails) if rank else None
    names: list[dict[str, Any]] = [{"optimizer": spread}, {"second": spread}]
    for given in names:
        _same_error(lambda: checkpointer.checkpoint(1, model=replicated, **given), "hook")  # noqa: B023
    if hook is not None:
        hook.remove()
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.checkpoint(2, model=replicated, optimizer=spread)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]


def a_rank_that_fails_alone_stops_a_sharded_restore(directory: Path, rank: int) -> None:
    """Restoring asks the other ranks for nothing, so that none waits; each holds its part alone."""
    checkpointer = Checkpointer(directory)
    model, optimizer = _sharded()
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.wait()
    whole = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    fresh, fresh_optimizer = _sharded()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    hook = fresh.register_load_state_dict_pre_hook(_fails) if rank else None
    _same_error(lambda: checkpointer.start(fresh, fresh_optimizer), "hook of one rank")
    if hook is not None:
        hook.remove()
    assert checkpointer.start(fresh, fresh_optimizer).start_epoch == 2
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor.full_tensor(), whole[name])
    for state in fresh_optimizer.state.values():
        part = state["exp_avg"].to_local()
        assert part.untyped_storage().nbytes() == part.nbytes, "not a view of all of it"


def what_one_rank_alone_cannot_decode_is_passed_over_by_all(directory: Path, rank: int) -> None:
    """Its checksums are right: it is found out before the bytes are read, or once they are."""
    stage = _sharded()[0]
    checkpointer = Checkpointer(directory)
    for epoch in (1, 2):
        checkpointer.checkpoint(epoch, model=small_model(), per_rank={"stage": stage})
    checkpointer.wait()
    expected = [local(parameter) for parameter in stage.parameters()]
    dist.barrier()
    sound = Forged(directory).path("state", "-1.json").read_bytes()
    dist.barrier()
    for change in ({"v": "of no tensor"}, {"$": "array", "dtype": "<f4", "shape": [999]}):
        if rank == 0:
            tree = json.loads(sound)
            tree["ranks"]["1"]["per_rank"]["stage"]["0.weight"] |= change
            Forged(directory).write("state", json.dumps(tree).encode(), "-1.json")
        dist.barrier()
        fresh = _sharded()[0]
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        again = Checkpointer(directory)
        assert again.start(small_model(), per_rank={"stage": fresh}).start_epoch == 2
        for parameter, value in zip(fresh.parameters(), expected, strict=True):
            assert torch.equal(local(parameter), value)


def what_is_not_on_all_ranks_of_its_mesh_is_refused(directory: Path, rank: int) -> None:
    """No checkpoint is committed of which a piece is missing; where none is, ranks may differ."""
    checkpointer = Checkpointer(directory)
    stage = _sharded()[0]
    others = (nn.Linear(1, 1), nn.Sequential(nn.Identity(), *stage.children()))
    for other in others:
        here = other if rank else stage
        error = _same_error(
            lambda: checkpointer.checkpoint(1, model=small_model(), per_rank={"stage": here}),  # noqa: B023
            "per_rank.stage.0.bias is sharded, and of its 20 bytes 12 are on rank 0",
        )
        assert isinstance(error, StateMismatchError)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    whole = distribute_tensor(torch.arange(4.0), mesh, [Replicate()])
    checkpointer.checkpoint(1, model=small_model(), per_rank={"kept": Kept({} if rank else whole)})
    checkpointer.wait()
    stored = [each["per_rank"]["kept"] for each in Checkpointer(directory).read(1).ranks]
    assert torch.equal(stored[0]["kept"], torch.arange(4.0))
    assert stored[1] == {"kept": {}}


def one_rank_may_load_alone(directory: Path, rank: int) -> None:
    """`load` into a sharded model is no collective."""
    checkpointer = Checkpointer(directory)
    model, optimizer = _sharded()
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.wait()
    before = [local(parameter).clone() for parameter in model.parameters()]
    if rank == 0:
        with torch.no_grad():
            for parameter in model.parameters():
                local(parameter).zero_()
        checkpointer.load(model, 1)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(local(parameter), value)


def fsdp1_is_refused(directory: Path, rank: int) -> None:
    """Bare, inside another module, by keyword and per rank; with the way out."""

    def flat(**options: Any) -> nn.Module:
        return FullyShardedDataParallel(nn.Linear(3, 3), device_id=torch.device("cpu"), **options)

    checkpointer = Checkpointer(directory)
    outer = nn.ModuleDict({"part": flat()})
    bare = nn.Linear(1, 1)
    with torch.no_grad():
        bare.weight.zero_()
        bare.bias.zero_()
    checkpointer.checkpoint(1, model=bare)
    checkpointer.wait()
    for call in (
        lambda: checkpointer.start(flat()),
        lambda: checkpointer.start(flat(use_orig_params=True)),
        lambda: checkpointer.start(outer),
        lambda: checkpointer.start(bare, average=flat()),
        lambda: checkpointer.start(bare, per_rank={"stage": flat()}),
        lambda: checkpointer.checkpoint(1, model=flat()),
        lambda: checkpointer.checkpoint(1, model=compiled(outer)),
        lambda: checkpointer.checkpoint(1, model=bare, average=outer),
        lambda: checkpointer.checkpoint(1, model=bare, per_rank={"stage": outer}),
        lambda: checkpointer.load(flat(), 1),
    ):
        error = error_of(call)
        assert isinstance(error, UnsupportedStateError), error
        assert "(FSDP1)" in str(error)
        assert "fully_shard" in str(error)


def all_checkpointers_share_one_group(directory: Path, rank: int) -> None:
    """A group has threads and sockets: there is one for a timeout, however many Checkpointers."""
    first, second = (Checkpointer(directory / str(i)) for i in range(2))
    third = Checkpointer(directory / "2", timeout=60)
    for checkpointer in (first, second):
        checkpointer.start(nn.Module())
    assert first._training._session is not second._training._session
    assert first._training._session is not None
    assert second._training._session is not None
    assert first._training._session.gang is second._training._session.gang
    third.start(nn.Module())
    assert third._training._session is not None
    assert third._training._session.gang is not first._training._session.gang
    assert len(gang._MADE) == 2


def no_thread_of_a_group_outlives_its_end(directory: Path, rank: int) -> None:
    """What runs at exit ends the threads of our groups: one that goes on could abort."""
    gang._close_all()
    before = _threads_of_gloo()
    Checkpointer(directory).start(nn.Module())
    assert _threads_of_gloo() > before, "the threads have another name: look for it"
    gang._close_all()
    assert _threads_of_gloo() == before


def _threads_of_gloo() -> int:
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)
