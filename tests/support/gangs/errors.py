"""What the ranks of a gang do when something fails on one of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
import torch.distributed as dist
from fsspec import AbstractFileSystem
from torch import nn
from torch.distributed.fsdp import fully_shard

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    ImuckptError,
    SaveFailedError,
    StateMismatchError,
    StorageError,
    UnsupportedStateError,
)
from ray_imuckpt.state.objects import take_object
from support.gangs.common import Position, error_of, full, same_everywhere
from support.logs import Messages


class Unreachable(AbstractFileSystem):
    """A storage that one rank cannot open."""

    protocol = "unreachable"

    def __init__(self, **options: Any) -> None:
        raise OSError("no route")


def every_rank_gets_the_same_error(directory: Path, rank: int) -> None:
    """Promise 6: a failure on one rank is everyone's, with that rank's number; nobody hangs."""
    fsspec.register_implementation("unreachable", Unreachable)
    model = small_model()
    checkpointer = Checkpointer(directory)

    given: Any = model if rank == 0 else None
    error = error_of(lambda: checkpointer.start(given))
    assert isinstance(error, TypeError)
    assert "on rank 1" in str(error)
    same_everywhere(str(error))

    error = error_of(lambda: checkpointer.checkpoint(1 + rank, model=model))
    assert isinstance(error, ValueError)
    assert "epoch" in str(error)
    same_everywhere(str(error))

    error = error_of(
        lambda: checkpointer.checkpoint(1, model=model, optimizer=adamw(model) if rank else None)
    )
    assert isinstance(error, ValueError)
    same_everywhere(str(error))

    uneven = Checkpointer(directory, save_every=1 + rank)
    for call in (
        lambda: uneven.checkpoint(1, model=model),
        lambda: checkpointer.checkpoint(1, model=model, metrics={"loss": 1.0} if rank else None),
    ):
        error = error_of(call)
        assert isinstance(error, ValueError)
        same_everywhere(str(error))
    error = error_of(lambda: checkpointer.start(model, device="cpu" if rank else "nowhere"))
    same_everywhere(str(error))
    place = "unreachable://x" if rank else directory
    error = error_of(lambda: Checkpointer(place).checkpoint(1, model=model))
    assert "no route" in str(error)
    same_everywhere(str(error))

    bad = {"sampler": Position(at=0)}
    if rank == 1:
        bad["sampler"].at = lambda: 0  # type: ignore[assignment]
    error = error_of(lambda: checkpointer.checkpoint(1, model=model, per_rank=bad))
    assert isinstance(error, UnsupportedStateError)
    assert error.rank == 1
    same_everywhere(str(error))

    error = error_of(lambda: checkpointer.checkpoint(1, model=model, hook=lambda: 0))
    assert isinstance(error, UnsupportedStateError)
    same_everywhere(str(error))
    assert not directory.exists(), "nothing was written so far"

    blocked = directory.parent / "file"
    if rank == 0:
        blocked.parent.mkdir(exist_ok=True)
        blocked.write_text("not a directory")
    dist.barrier()
    blocking = Checkpointer(blocked / "run", blocking=True)
    error = error_of(lambda: blocking.checkpoint(1, model=model))
    assert isinstance(error, SaveFailedError)
    same_everywhere(str(error))
    error = error_of(lambda: blocking.start(model))  # only rank 0 has looked
    assert isinstance(error, StorageError)
    assert error.rank == 0
    same_everywhere(str(error))

    # In the background: the error of rank 0 is everyone's when they meet again.
    lost = Checkpointer(blocked / "run")
    pending = lost.checkpoint(1, model=model)
    assert pending is not None
    error = error_of(pending.wait)
    assert isinstance(error, SaveFailedError)
    same_everywhere(str(error))
    lost.wait()
    lost.checkpoint(2, model=model)
    error = error_of(lambda: lost.checkpoint(3, model=model))
    assert isinstance(error, SaveFailedError)
    same_everywhere(str(error))

    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    other = nn.Linear(3, 3) if rank == 1 else model
    error = error_of(lambda: checkpointer.start(other))
    assert isinstance(error, (StateMismatchError, ValueError))
    same_everywhere(str(error))
    narrow = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2 + rank))
    fitting = {n: t.clone() for n, t in narrow.state_dict().items()}
    error = error_of(lambda: checkpointer.start(narrow))
    assert isinstance(error, StateMismatchError)
    assert error.rank == 1
    same_everywhere(str(error))
    assert same_bytes(dict(narrow.state_dict()), fitting), "on rank 0, where it fits, too"
    assert same_bytes(dict(model.state_dict()), before)

    if rank == 0:
        next((directory / "checkpoint=1").glob("state-*.json")).write_bytes(b"")
    dist.barrier()
    for choice in (1, "last"):
        error = error_of(lambda: checkpointer.start(model, continue_from=choice))  # noqa: B023
        assert isinstance(error, CorruptCheckpointError)
        same_everywhere(str(error))


def what_does_not_fit_changes_nothing_on_any_rank(directory: Path, rank: int) -> None:
    """The error of one rank is everyone's, and every object on every rank is as it was."""

    class Refusing(Position):
        def load_state_dict(self, state: dict[str, int]) -> None:
            if rank == 1:
                raise KeyError("not mine")
            super().load_state_dict(state)

    def build(seed: int, kind: Any = torch.optim.Adam) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = small_model(seed)
        optimizer = adamw(model)
        extra = nn.ParameterList([torch.ones(2), torch.ones(3)])
        second = kind(extra.parameters(), lr=0.1 + seed)
        for group in (*optimizer.param_groups, *second.param_groups):
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        second.step()
        return {
            "model": model,
            "optimizer": optimizer,
            "extra": extra,
            "second": second,
            "generator": np.random.default_rng(seed),
            "per_rank": {
                "a": Position(seed), "g": np.random.default_rng([seed, rank]), "z": Refusing(seed)
            },
        }  # fmt: skip

    def states(given: dict[str, Any]) -> Any:
        objects = {**given, **given["per_rank"]}
        model = given["model"].state_dict()
        names = sorted(objects.keys() - {"model", "per_rank"})
        kept = copy.deepcopy([take_object(objects[name]) for name in names])
        return kept, {name: value.clone() for name, value in model.items()}

    def refused(given: dict[str, Any], told: str) -> None:
        before = states(given)
        error = error_of(lambda: Checkpointer(directory).start(**given))
        assert told in str(error), error
        same_everywhere(str(error))
        assert same_bytes(states(given), before)

    checkpointer = Checkpointer(directory)
    saved = build(1)
    checkpointer.checkpoint(1, **saved)
    checkpointer.wait()

    refused(build(2), "not mine")
    refused(build(2, torch.optim.AdamW), "'second' is a AdamW here, and was saved as a Adam")
    given = build(2)
    given["optimizer"] = torch.optim.SGD(given["model"].parameters())
    refused(given, "the state of a AdamW, this optimizer is a SGD")
    given = build(2)
    usable = [p for p in given["model"].parameters() if p.requires_grad]
    given["optimizer"] = torch.optim.AdamW(usable)
    refused(given, "2 parameter group(s), this one has 1")
    given = build(2)
    given["second"].add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    refused(given, "'second' had 1 parameter group(s)")
    given = build(2)
    if rank == 1:
        del given["per_rank"]["a"]
    refused(given, "per_rank is ['a', 'g', 'z'] on rank 0 and ['g', 'z'] on rank 1")
    given = build(2)
    given["per_rank"]["more"] = Position()
    refused(given, "per_rank['more']")

    given = build(2)
    del given["per_rank"]["z"]
    expected = saved["per_rank"]["g"].random(3).tolist()
    checkpointer.start(**given)
    assert given["per_rank"]["a"].at == 1
    drawn = given["per_rank"]["g"].random(3).tolist()
    assert drawn == expected, "each rank's own generator goes on"
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, drawn)
    assert everyone[0] != everyone[1]


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
    given: dict[str, Any] = dict(sharded if rank else reversed(sharded.items()))
    checkpointer = Checkpointer(directory)
    error = error_of(lambda: checkpointer.checkpoint(1, model=small_model(), b=Failing(), **given))
    assert "of rank 1" in str(error)
    same_everywhere(str(error))
    checkpointer.checkpoint(2, model=small_model(), **given)
    checkpointer.wait()
    expected = {name: full(part.weight).clone() for name, part in sharded.items()}
    for part in sharded.values():
        with torch.no_grad():
            part.weight.zero_()
    checkpointer.start(small_model(), **given)
    for name, part in sharded.items():
        assert torch.equal(full(part.weight), expected[name])


def a_script_without_a_process_group(directory: Path, rank: int) -> None:
    """Torchrun's environment without init_process_group is refused: all would write the same."""
    dist.destroy_process_group()
    error = error_of(lambda: Checkpointer(directory).start(small_model()))
    assert isinstance(error, ImuckptError)
    assert "init_process_group" in str(error)


def what_differs_between_ranks_is_told_once(directory: Path, rank: int) -> None:
    """Passed by keyword, it is rank 0's that is stored."""
    checkpointer = Checkpointer(directory)
    with Messages() as records:
        for epoch in (1, 2):
            checkpointer.checkpoint(
                epoch, model=nn.Linear(1, 1), mine=Position(rank), same=Position(7), note="a",
                per_rank={"own": Position(rank)},
            )  # fmt: skip
        checkpointer.wait()
    told = [text for text in records if "per_rank" in text]
    assert len(told) == (rank == 0), records
    assert all(text.startswith("'mine' on rank 1 is not") for text in told)
