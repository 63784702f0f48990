"""What each rank of a gloo gang does; run by test_gang.py in processes of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    ImuckptError,
    SaveFailedError,
    StateMismatchError,
    UnsupportedStateError,
    preemption,
)


class Position:
    """A sampler of one rank."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def _error(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("no error on this rank")


def _same_everywhere(told: str) -> None:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    assert len(set(everyone)) == 1, everyone


def what_differs_between_ranks_is_told_once(directory: Path, rank: int) -> None:
    """Passed by keyword, it is rank 0's that is stored."""
    records: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Keeper(logging.WARNING)
    logging.getLogger("ray_imuckpt").addHandler(handler)
    checkpointer = Checkpointer(directory)
    for epoch in (1, 2):
        checkpointer.checkpoint(
            epoch, model=nn.Linear(1, 1), mine=Position(rank), same=Position(7), note="a",
            per_rank={"own": Position(rank)},
        )  # fmt: skip
    checkpointer.wait()
    logging.getLogger("ray_imuckpt").removeHandler(handler)
    told = [text for text in records if "per_rank" in text]
    assert len(told) == (rank == 0), records
    assert all(text.startswith("'mine' on rank 1 is not") for text in told)


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
    _same_everywhere(json.dumps(checkpointer.start(small_model()).log))
    assert set(checkpointer.read(4).model) == set(small_model().state_dict())


def fsdp2_is_gathered_in_full(directory: Path, rank: int) -> None:
    """Saved sharded, loaded bare; and back, with the optimizer."""

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
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
    whole = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    bare = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    bare_optimizer = torch.optim.AdamW(bare.parameters(), lr=0.1)
    checkpointer.start(bare, bare_optimizer)
    assert same_bytes(dict(bare.state_dict()), whole)
    moments = optimizer.state[model[0].weight]["exp_avg"].full_tensor()
    assert torch.equal(bare_optimizer.state[bare[0].weight]["exp_avg"], moments)

    again, again_optimizer = build(2)
    checkpointer.start(again, again_optimizer)
    assert same_bytes({n: t.full_tensor() for n, t in again.state_dict().items()}, whole)
    state = again_optimizer.state[again[0].weight]
    assert type(state["exp_avg"]) is type(again[0].weight.data)
    assert torch.equal(state["exp_avg"].full_tensor(), moments)
    for trained, trainer in ((model, optimizer), (again, again_optimizer)):
        trainer.zero_grad()
        trained(torch.ones(2, 5)).sum().backward()
        trainer.step()
    assert torch.equal(model[0].weight.full_tensor(), again[0].weight.full_tensor())


def a_rank_that_fails_is_not_waited_for_in_a_gathering(directory: Path, rank: int) -> None:
    """A sharded model by keyword, beside an object that fails on one rank."""

    class Failing(Position):
        def state_dict(self) -> dict[str, int]:
            if rank == 1:
                raise KeyError("of rank 1")
            return {}

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = {name: nn.Linear(4, 4) for name in ("a", "z")}
    for part in sharded.values():
        fully_shard(part, mesh=mesh)
    given = sharded if rank else dict(reversed(sharded.items()))
    checkpointer = Checkpointer(directory)
    error = _error(lambda: checkpointer.checkpoint(1, model=small_model(), b=Failing(), **given))
    assert "of rank 1" in str(error)
    _same_everywhere(str(error))
    checkpointer.checkpoint(2, model=small_model(), **given)
    checkpointer.wait()
    expected = {name: part.weight.full_tensor().clone() for name, part in sharded.items()}
    for part in sharded.values():
        with torch.no_grad():
            part.weight.zero_()
    checkpointer.start(small_model(), **given)
    for name, part in sharded.items():
        assert torch.equal(part.weight.full_tensor(), expected[name])


def zero_redundancy_optimizer(directory: Path, rank: int) -> None:
    """Consolidated to rank 0, restored on every rank, also without the sharding."""

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
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
    assert set(checkpointer.read(1).optimizer["state"]) == {
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


def every_rank_gets_the_same_error(directory: Path, rank: int) -> None:
    """Promise 6: a failure on one rank is everyone's, with that rank's number; nobody hangs."""
    model = small_model()
    checkpointer = Checkpointer(directory)

    error = _error(lambda: checkpointer.start(model if rank == 0 else None))  # type: ignore[arg-type]
    assert isinstance(error, TypeError)
    assert "on rank 1" in str(error)
    _same_everywhere(str(error))

    error = _error(lambda: checkpointer.checkpoint(1 + rank, model=model))
    assert isinstance(error, ValueError)
    assert "epoch" in str(error)
    _same_everywhere(str(error))

    error = _error(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=adamw(model) if rank else None)
    )
    assert isinstance(error, ValueError)
    _same_everywhere(str(error))

    uneven = Checkpointer(directory, save_every=1 + rank)
    for call in (
        lambda: uneven.checkpoint(1, model=model),
        lambda: checkpointer.checkpoint(1, model=model, metrics={"loss": 1.0} if rank else None),
    ):
        error = _error(call)
        assert isinstance(error, ValueError)
        _same_everywhere(str(error))
    error = _error(lambda: checkpointer.start(model, device="cpu" if rank else "nowhere"))
    _same_everywhere(str(error))
    error = _error(
        lambda: Checkpointer("nowhere://x" if rank else directory).checkpoint(1, model=model)
    )
    _same_everywhere(str(error))

    bad = {"sampler": Position(at=0)}
    if rank == 1:
        bad["sampler"].at = lambda: 0  # type: ignore[assignment]
    error = _error(lambda: checkpointer.checkpoint(1, model=model, per_rank=bad))
    assert isinstance(error, UnsupportedStateError)
    assert error.rank == 1
    _same_everywhere(str(error))

    error = _error(lambda: checkpointer.checkpoint(1, model=model, hook=lambda: 0))
    assert isinstance(error, UnsupportedStateError)
    _same_everywhere(str(error))
    assert not directory.exists(), "nothing was written so far"

    blocked = directory.parent / "file"
    if rank == 0:
        blocked.parent.mkdir()
        blocked.write_text("not a directory")
    dist.barrier()
    blocking = Checkpointer(blocked / "run", blocking=True)
    error = _error(lambda: blocking.checkpoint(1, model=model))
    assert isinstance(error, SaveFailedError)
    _same_everywhere(str(error))

    # In the background: the error of rank 0 is everyone's when they meet again.
    lost = Checkpointer(blocked / "run")
    pending = lost.checkpoint(1, model=model)
    assert pending is not None
    error = _error(pending.wait)
    assert isinstance(error, SaveFailedError)
    _same_everywhere(str(error))
    lost.wait()
    lost.checkpoint(2, model=model)
    error = _error(lambda: lost.checkpoint(3, model=model))
    assert isinstance(error, SaveFailedError)
    _same_everywhere(str(error))

    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    other = nn.Linear(3, 3) if rank == 1 else model
    error = _error(lambda: checkpointer.start(other))
    assert isinstance(error, (StateMismatchError, ValueError))
    _same_everywhere(str(error))
    narrow = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2 + rank))
    error = _error(lambda: checkpointer.start(narrow))
    assert isinstance(error, StateMismatchError)
    assert error.rank == 1
    _same_everywhere(str(error))
    assert same_bytes(dict(model.state_dict()), before)

    if rank == 0:
        next((directory / "checkpoint=1").glob("state-*.json")).write_bytes(b"")
    dist.barrier()
    for choice in (1, "last"):
        error = _error(lambda: checkpointer.start(model, continue_from=choice))  # noqa: B023
        assert isinstance(error, CorruptCheckpointError)
        _same_everywhere(str(error))


def fallback_is_taken_by_all(directory: Path, rank: int) -> None:
    """A damaged newest checkpoint: all ranks go back to the same older one."""
    checkpointer = Checkpointer(directory)
    model = small_model()
    for epoch in (1, 2, 3):
        checkpointer.checkpoint(epoch, model=model, log=[epoch])
    checkpointer.wait()
    if rank == 0:
        next((directory / "checkpoint=3").glob("model-*")).write_bytes(b"")
        (directory / "checkpoint=2" / "manifest.json").write_bytes(b"{")
    dist.barrier()
    started = checkpointer.start(small_model(seed=1 + rank))
    assert (started.start_epoch, started.log) == (2, [1])


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
    _same_everywhere(str(float(model[0].weight.sum())))
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
        assert preemption.noted() == (rank == 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def collectives_move_bytes_of_any_size(directory: Path, rank: int) -> None:
    """gather, all_gather and broadcast with nothing, little and much; rank 0 names the run."""
    from ray_imuckpt import sessions
    from ray_imuckpt.ranks import TorchRanks

    ranks = TorchRanks()
    for size in (0, 1, 5_000_000):
        payload = bytes([rank]) * (size + rank)
        expected = [bytes([r]) * (size + r) for r in range(ranks.world_size)]
        assert ranks.all_gather(payload) == expected
        assert ranks.gather(payload) == (expected if rank == 0 else [])
        assert ranks.broadcast(payload if rank == 0 else None) == expected[0]
    assert ranks.all_gather(b"") == [b""] * ranks.world_size
    given = os.environ["TORCHELASTIC_RUN_ID"]
    os.environ["TORCHELASTIC_RUN_ID"] = f"of-rank-{rank}"
    run = str(sessions.detect().run_id())
    os.environ["TORCHELASTIC_RUN_ID"] = given
    assert run.startswith(f"torchelastic-of-rank-0-{os.getppid()}"), "rank 0's, on every rank"
    _same_everywhere(run)


def a_script_without_a_process_group(directory: Path, rank: int) -> None:
    """Torchrun's environment without init_process_group is refused: all would write the same."""
    dist.destroy_process_group()
    error = _error(lambda: Checkpointer(directory).start(small_model()))
    assert isinstance(error, ImuckptError)
    assert "init_process_group" in str(error)


def main() -> None:
    """Run the functions named on the command line, each in a directory of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    for name in sys.argv[2:]:
        directory = Path(sys.argv[1], name)
        try:
            globals()[name](directory / "run", rank)
        except BaseException:
            text = traceback.format_exc()
            directory.mkdir(exist_ok=True, parents=True)
            (directory / f"failed-on-rank-{rank}").write_text(text)
            raise
        if dist.is_initialized():
            dist.barrier()
        directory.mkdir(exist_ok=True, parents=True)
        (directory / f"passed-on-rank-{rank}").touch()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
