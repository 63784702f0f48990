"""Stories in which a gang resumes, whole and sharded, and what it shares while it runs."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer, CorruptCheckpointError, UnsupportedStateError
from ray_imuckpt.runtime import preemption
from support.gangs.common import Position, error_of, full, same_everywhere
from support.logs import Messages


def _ddp_run(directory: Path, last: int, rank: int) -> tuple[nn.Module, list[Any], int]:
    torch.manual_seed(100 + rank)
    model = DistributedDataParallel(small_model(seed=0))
    torch.manual_seed(100 + rank)
    optimizer = adamw(model)
    sampler = Position()
    checkpointer = Checkpointer(directory)
    started = checkpointer.start(model, optimizer, per_rank={"sampler": sampler})
    for epoch in range(started.start_epoch, last + 1):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sampler.at += rank + 1
        started.log.append({"epoch": epoch, "noise": torch.rand(1).item()})
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=started.log, per_rank={"sampler": sampler}
        )
    checkpointer.wait()
    assert sampler.at == last * (rank + 1)
    return model, started.log, started.start_epoch


def ddp_resumes_bit_identically(directory: Path, rank: int) -> None:
    """Every rank gets its own state back; rank 0's log is everyone's."""
    whole, whole_log, _ = _ddp_run(directory / "whole", 4, rank)
    _ddp_run(directory / "parts", 2, rank)
    model, log, first = _ddp_run(directory / "parts", 4, rank)
    assert first == 3
    assert same_bytes(dict(model.state_dict()), dict(whole.state_dict()))
    checkpointer = Checkpointer(directory / "parts")
    assert len(checkpointer.read(4).ranks) == dist.get_world_size()
    assert log[2:] == whole_log[2:], "this rank's own draws go on as they would have"
    same_everywhere(json.dumps(checkpointer.start(small_model()).log))
    assert set(checkpointer.read(4).model) == set(small_model().state_dict())


def a_run_begins_with_another_ones_checkpoint(directory: Path, rank: int) -> None:
    """Only rank 0 need see it; what differs, or is damaged, is an error on all."""
    donor = directory / "donor"
    model = small_model()
    checkpointer = Checkpointer(donor)
    checkpointer.checkpoint(3, model=model)
    checkpointer.wait()
    place = (donor if rank == 0 else directory / "out of sight") / "checkpoint=3"
    for first in (4, 5):
        begun = Checkpointer(directory / "run", continue_from=place)
        started = begun.start(small_model(seed=5 + rank))
        assert started.start_epoch == first, "the second time its own newest"
        assert same_bytes(dict(started.model.state_dict()), dict(model.state_dict()))
        begun.checkpoint(first, model=started.model)
        begun.wait()
    same_everywhere(str(begun.read(4).manifest.parent))
    assert begun.read(4).manifest.parent == checkpointer.read(3).manifest.origin
    error = error_of(lambda: begun.start(model, continue_from=donor / f"checkpoint={3 + rank}"))
    assert isinstance(error, ValueError)
    assert "continue_from" in str(error)
    same_everywhere(str(error))
    dist.barrier()
    if rank == 0:
        next((donor / "checkpoint=3").glob("model-*")).write_bytes(b"")
    dist.barrier()
    error = error_of(lambda: Checkpointer(directory / "new", continue_from=place).start(model))
    assert isinstance(error, CorruptCheckpointError)
    same_everywhere(str(error))


def fsdp2_is_gathered_in_full(directory: Path, rank: int) -> None:
    """Saved sharded, loaded bare; and back, with the optimizer."""

    def build(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = build(1)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    checkpointer = Checkpointer(directory)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.wait()
    whole = {name: full(tensor) for name, tensor in model.state_dict().items()}
    bare = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    bare_optimizer = torch.optim.AdamW(bare.parameters(), lr=0.1)
    checkpointer.start(bare, bare_optimizer)
    assert same_bytes(dict(bare.state_dict()), whole)
    moments = full(optimizer.state[model.get_parameter("0.weight")]["exp_avg"])
    assert torch.equal(bare_optimizer.state[bare.get_parameter("0.weight")]["exp_avg"], moments)

    again, again_optimizer = build(2)
    checkpointer.start(again, again_optimizer)
    assert same_bytes({n: full(t) for n, t in again.state_dict().items()}, whole)
    weight = again.get_parameter("0.weight")
    state = again_optimizer.state[weight]
    assert type(state["exp_avg"]) is type(weight.data)
    assert torch.equal(full(state["exp_avg"]), moments)
    for trained, trainer in ((model, optimizer), (again, again_optimizer)):
        trainer.zero_grad()
        trained(torch.ones(2, 5)).sum().backward()
        trainer.step()
    assert torch.equal(full(model.get_parameter("0.weight")), full(weight))


def zero_redundancy_optimizer(directory: Path, rank: int) -> None:
    """Consolidated to rank 0, restored on every rank, also without the sharding."""

    def build(seed: int) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
        model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
        return model, ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.Adam, lr=0.1
        )

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = build(1)
    step(model, optimizer)
    checkpointer = Checkpointer(directory)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    checkpointer.wait()
    saved = checkpointer.read(1).optimizer
    assert saved is not None
    assert set(saved["state"]) == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    again, again_optimizer = build(2)
    checkpointer.start(again, again_optimizer)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=0.1)
    checkpointer.start(plain, plain_optimizer)
    for pair in ((model, optimizer), (again, again_optimizer), (plain, plain_optimizer)):
        step(*pair)
    assert same_bytes(dict(again.state_dict()), dict(model.state_dict()))
    assert same_bytes(dict(plain.state_dict()), dict(model.module.state_dict()))


def storage_is_read_on_rank_zero_only(directory: Path, rank: int) -> None:
    """The other ranks receive the bytes: their storage need not even hold them."""
    model = small_model(seed=7)
    pending = Checkpointer(directory).checkpoint(1, model=model)
    assert pending is not None
    pending.wait()
    mine = directory if rank == 0 else directory.parent / "not-mounted-here"
    fresh = small_model(seed=8)
    assert Checkpointer(mine).start(fresh).start_epoch == 2
    assert same_bytes(dict(fresh.state_dict()), dict(model.state_dict()))


def a_rank_that_was_not_there(directory: Path, rank: int) -> None:
    """Another gang size: what is replicated is exact, new ranks draw numbers of their own."""
    half = dist.new_group(ranks=[0])
    del half
    model = small_model()
    checkpointer = Checkpointer(directory)
    started = checkpointer.start(model)  # written by one rank alone, before the gang began
    assert started.start_epoch == 3
    same_everywhere(str(float(model.get_parameter("0.weight").sum())))
    drawn: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(drawn, torch.rand(1).item())
    assert len(set(drawn)) == len(drawn)


def one_rank_is_told_to_go(directory: Path, rank: int) -> None:
    """preempted() is true on all ranks as soon as one got SIGTERM."""
    checkpointer = Checkpointer(directory)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert not checkpointer.preempted()
        if rank == 1:
            signal.raise_signal(signal.SIGTERM)
        assert checkpointer.preempted()
        assert preemption._WATCH.noted == (rank == 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def what_one_rank_does_not_save_is_an_error_on_all(directory: Path, rank: int) -> None:
    """A parameter of rank 1's optimizer is of no model; warnings are rank 0's alone."""
    messages = Messages()
    warnings = messages.begin()
    model = small_model()
    checkpointer = Checkpointer(directory)
    sampler = {"sampler": Position()}
    checkpointer.checkpoint(2, model=model, optimizer=adamw(model), per_rank=sampler)
    checkpointer.wait()
    optimizer = torch.optim.SGD([*model.parameters(), *([torch.ones(3)] * rank)])
    error = error_of(lambda: checkpointer.checkpoint(3, model=model, optimizer=optimizer))
    assert isinstance(error, UnsupportedStateError)
    assert error.rank == 1
    assert "of shape (3,)" in str(error)
    same_everywhere(str(error))
    assert not warnings
    Checkpointer(directory).start(model)
    Checkpointer(directory).checkpoint(1, model=model)
    told = ["optimizer is in", "per_rank['sampler'] is in", "Epoch 1 is saved below epoch 2"]
    if rank == 0:
        assert [line for line in told if any(w.startswith(line) for w in warnings)] == told
    assert len(warnings) == (3 if rank == 0 else 0)
    messages.end()


def collectives_move_bytes_of_any_size(directory: Path, rank: int) -> None:
    """gather, all_gather and broadcast with nothing, little and much; torchrun names the run."""
    from ray_imuckpt.gang.gloo import GlooTransport
    from ray_imuckpt.runtime import registry

    gang = GlooTransport(timedelta(seconds=60))
    for size in (0, 1, 5_000_000):
        payload = bytes([rank]) * (size + rank)
        expected = [bytes([r]) * (size + r) for r in range(gang.world_size)]
        assert gang.all_gather(payload) == expected
        assert gang.gather(payload, [len(e) for e in expected]) == (expected if rank == 0 else [])
        assert gang.broadcast(payload if rank == 0 else None) == expected[0]
    assert gang.all_gather(b"") == [b""] * gang.world_size
    session = registry.session(timedelta(seconds=60))
    assert session.surroundings == "torchrun"
    job = os.environ["TORCHELASTIC_RUN_ID"]
    assert str(session.identity.id).startswith(f"torchelastic-{job}-{os.getppid()}")
    same_everywhere(str(session.identity))
