"""Gangs whose ranks hold other tensors, or other values, than each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from conftest import same_bytes
from ray_imuckpt import Checkpointer, StateMismatchError
from support.gangs.common import error_of, same_everywhere
from support.logs import Messages


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, factor)
    optimizer.step()


def _states(*objects: Any) -> list[Any]:
    return [
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in o.state_dict().items()}
        if isinstance(o, nn.Module)
        else [dict(s) for s in o.state.values()]
        for o in objects
    ]


def _mismatch(call: Any, *told: str) -> None:
    error = error_of(call)
    assert isinstance(error, StateMismatchError), error
    for text in told:
        assert text in str(error), error
    same_everywhere(str(error))


def tensors_that_differ_are_named(directory: Path, rank: int) -> None:
    """Shapes, dtypes, names and groups are compared at start and at every save."""
    checkpointer = Checkpointer(directory)
    wide = nn.Linear(3 + rank, 3)
    where = "is (3, 3) torch.float32 on rank 0 and (3, 4) torch.float32 on rank 1"
    _mismatch(lambda: checkpointer.start(wide), f"start() was called with different states: "
              f"model['weight'] {where}", "per_rank")  # fmt: skip
    _mismatch(lambda: checkpointer.checkpoint(1, model=wide), f"model['weight'] {where}")
    precise = nn.Linear(3, 3).to(torch.float64 if rank else torch.float32)
    _mismatch(lambda: checkpointer.start(precise), "torch.float64 on rank 1")
    stage = nn.ModuleDict({f"stage{rank}": nn.Linear(2, 2)})
    for call in (
        lambda: checkpointer.start(stage),
        lambda: checkpointer.checkpoint(1, model=stage),
    ):
        _mismatch(call, "model['stage0.weight'] is (2, 2) torch.float32 on rank 0 and not there on")
    model = nn.Linear(3, 3)
    some = torch.optim.SGD(list(model.parameters())[rank:], lr=0.1)
    calls: tuple[Callable[[], object], ...] = (
        lambda: checkpointer.start(model, some),
        lambda: checkpointer.checkpoint(1, model=model, optimizer=some),
    )
    for of_some in calls:
        _mismatch(of_some, "optimizer.param_groups[0] is weight, bias on rank 0 and bias on rank 1")
    optimizer = _adam(model)
    if rank == 0:
        _step(model, optimizer, 1.0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    _mismatch(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer),
        "optimizer['weight']['exp_avg'] is (3, 3) torch.float32 on rank 0 and not there on rank 1",
    )
    assert not directory.exists()


def values_that_differ_are_an_error(directory: Path, rank: int) -> None:
    """From scratch at start, and at the first save after it; nothing is written."""
    checkpointer = Checkpointer(directory)
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float(2 * rank))
    _mismatch(
        lambda: checkpointer.start(model),
        "model['weight'] on rank 1",
        "DistributedDataParallel",
        "per_rank",
    )
    nn.init.constant_(model.weight, 1.0)
    optimizer = _adam(model)
    checkpointer.start(model, optimizer)
    _step(model, optimizer, 1.0 + rank)  # as if DDP had been forgotten
    call = lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer)  # noqa: E731
    _mismatch(call, "optimizer['weight']['exp_avg'] on rank 1")
    _mismatch(call, "optimizer['weight']['exp_avg'] on rank 1")
    assert checkpointer.list_existing_checkpoint_indices() == []
    with torch.no_grad():
        for tensor in (*model.parameters(), *(optimizer.state[p]["exp_avg"] for p in
                       model.parameters()), *(optimizer.state[p]["exp_avg_sq"] for p in
                       model.parameters())):  # fmt: skip
            dist.broadcast(tensor, src=0)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [1]
    nn.init.constant_(model.weight, float(rank))
    assert checkpointer.start(model, optimizer).start_epoch == 2, "what is restored is the same"


def each_rank_has_a_stage_of_its_own(directory: Path, rank: int) -> None:
    """A pipeline: modules and optimizers of other shapes on each rank, in per_rank alone."""

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed + rank)
        stage = nn.Sequential(nn.Linear(2 + rank, 3), nn.BatchNorm1d(3))
        return stage, _adam(stage)

    stage, optimizer = build(1)
    _step(stage, optimizer, 1.0 + rank)
    checkpointer = Checkpointer(directory)
    own = {"stage": stage, "optimizer": optimizer}
    checkpointer.start(nn.Module(), per_rank=own)
    checkpointer.checkpoint(1, model=nn.Module(), per_rank=own)
    checkpointer.wait()
    fresh = build(7)
    mine = dict(zip(("stage", "optimizer"), fresh, strict=True))
    assert checkpointer.start(nn.Module(), per_rank=mine).start_epoch == 2
    assert same_bytes(_states(*fresh), _states(stage, optimizer))
    for pair in ((stage, optimizer), fresh):
        _step(*pair, 0.5)
    assert same_bytes(_states(*fresh), _states(stage, optimizer))


def what_is_in_per_rank_may_differ(directory: Path, rank: int) -> None:
    """Experts inside the model: each rank's own values come back, and the rest is compared."""

    def build() -> tuple[nn.ModuleDict, torch.optim.Optimizer, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"shared": nn.Linear(2, 2), "expert": nn.Linear(2, 2)})
        return model, _adam(model["shared"]), _adam(model["expert"])

    model, optimizer, own_optimizer = build()
    checkpointer = Checkpointer(directory)
    own = {"expert": model["expert"], "own": own_optimizer}
    nn.init.constant_(model.get_parameter("expert.weight"), float(rank))
    checkpointer.start(model, optimizer, per_rank=own)
    _step(model["shared"], optimizer, 1.0)
    _step(model["expert"], own_optimizer, 1.0 + rank)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, per_rank=own)
    checkpointer.wait()
    fresh = build()
    mine = {"expert": fresh[0]["expert"], "own": fresh[2]}
    checkpointer.start(fresh[0], fresh[1], per_rank=mine)
    assert same_bytes(_states(*fresh), _states(model, optimizer, own_optimizer))
    nn.init.constant_(model.get_parameter("shared.weight"), float(rank))
    other = Checkpointer(directory.with_name("other"))
    _mismatch(
        lambda: other.start(model, optimizer, per_rank=own), "model['shared.weight'] on rank 1"
    )
    both = {"all": model, "optimizer": optimizer, "own": own_optimizer}
    other.start(model, optimizer, per_rank=both)
    _step(model["shared"], optimizer, 1.0 + rank)
    other.checkpoint(1, model=model, optimizer=optimizer, per_rank=both)
    other.wait()
    fresh = build()
    mine = {"all": fresh[0], "optimizer": fresh[1], "own": fresh[2]}
    other.start(fresh[0], fresh[1], per_rank=mine)
    assert same_bytes(_states(*fresh), _states(model, optimizer, own_optimizer))


def buffers_are_rank_zeros(directory: Path, rank: int) -> None:
    """Running statistics differ by nature: told, unless DDP shares them; tensors by keyword too."""
    messages = Messages()
    records = messages.begin()

    def saved(name: str, model: nn.Module, **other: Any) -> list[str]:
        records.clear()
        checkpointer = Checkpointer(directory / name)
        for epoch in (1, 2):
            checkpointer.checkpoint(epoch, model=model, **other)
        checkpointer.wait()
        return list(records)

    def trained(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.BatchNorm1d(2), **options)
        model(torch.full((4, 2), float(rank)) + torch.arange(4.0)[:, None])
        return model

    try:
        assert saved("shared", trained()) == []
        told = saved("own", trained(broadcast_buffers=False))
        assert len(told) == (rank == 0), told
        assert all(text.startswith("model['running_mean'] on rank 1 is not") for text in told)
        told = saved(
            "tensors", nn.Linear(1, 1), scale=torch.tensor(float(rank)), same=torch.ones(2)
        )
        assert len(told) == (rank == 0), told
        assert all(text.startswith("'scale' (its tensors) on rank 1 is not") for text in told)
        torch.manual_seed(rank)
        told = saved("average", nn.Module(), average=nn.Linear(1, 1))
        assert len(told) == (rank == 0), told
        assert all("'average' (its tensors) on rank 1" in text for text in told)
    finally:
        messages.end()
