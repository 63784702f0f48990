"""Stories of what is spread over the ranks beside the model: by keyword and in ``per_rank``."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer, StateMismatchError
from ray_imuckpt.saving import division
from support.gangs import zoo
from support.gangs.common import Position, error_of, local, same_everywhere
from support.gangs.reading import build, nothing_is_small, state, step
from support.gangs.room import rooms

_NEVER_WHOLE = mock.patch.object(DTensor, "full_tensor", None)
_NEVER_ONE = mock.patch.object(ZeroRedundancyOptimizer, "consolidate_state_dict", None)
_TOGETHER = mock.patch.object(division, "TOGETHER_FROM", 1)


class Keeper:
    """An object of one rank that has a part of a tensor."""

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "list": [self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]
        assert torch.equal(state["list"][0], state["kept"])


def two_sharded_models_and_an_average_are_the_same_run(directory: Path, rank: int) -> None:
    """A GAN with FSDP2: further models and their optimizers by keyword, as the model's own."""

    def built(seed: int) -> tuple[zoo.Run, zoo.Run, zoo.Run]:
        return zoo.build("fsdp", seed), zoo.build("fsdp", seed + 1), zoo.build("fsdp", seed)

    def trained(gan: tuple[zoo.Run, zoo.Run, zoo.Run], number: int) -> None:
        (maker, of_maker), (judge, of_judge), (mean, _) = gan
        data = torch.randn(4, zoo.WIDTH, generator=torch.Generator().manual_seed(number))
        for optimizer, sign in ((of_judge, 1.0), (of_maker, -1.0)):
            made = maker(data).repeat(1, 2)
            loss = (judge(made).square().mean() - judge(data).square().mean()) * sign
            for each in (of_maker, of_judge):
                each.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(mean.parameters(), maker.parameters(), strict=True):
                average.lerp_(parameter, 0.5)

    def given(gan: tuple[zoo.Run, zoo.Run, zoo.Run]) -> dict[str, Any]:
        (maker, of_maker), (judge, of_judge), (mean, _) = gan
        return {"model": maker, "optimizer": of_maker, "judge": judge, "of_judge": of_judge,
                "mean": mean}  # fmt: skip

    gan, again = built(0), built(5)
    checkpointer = Checkpointer(directory)
    for number in (1, 2):
        trained(gan, number)
    with _NEVER_WHOLE:
        checkpointer.checkpoint(1, **given(gan))
        checkpointer.wait()
    files = checkpointer.read(1).manifest.files_of("state", "safetensors")
    sizes = [file.size - file.header_size for file in files]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes), "even shares of what is sharded"
    with _NEVER_WHOLE:
        Checkpointer(directory).start(**given(again))
    for number in (3, 4):
        trained(gan, number)
        trained(again, number)
    for one, other in zip(gan, again, strict=True):
        assert same_bytes(zoo.whole(one), zoo.whole(other))


def what_is_sharded_in_per_rank_goes_by_pieces(directory: Path, rank: int) -> None:
    """Each rank writes and reads its part of it, in whatever layout; an object gets all of it."""
    layouts = zoo.FOUR if dist.get_world_size() == 4 else ("fsdp", "tensor parallel")
    for layout in layouts:
        here = directory / layout
        run, beside, again = (zoo.build(layout, seed) for seed in (0, 1, 2))
        for each in (run, beside):
            zoo.train(each, 1, 2)
        keeper = Keeper(beside[0].get_parameter("blocks.0.up.weight").detach())
        expected = zoo.whole(beside)
        checkpointer = Checkpointer(here)
        position = Position(rank)
        with _NEVER_WHOLE:
            checkpointer.checkpoint(
                1, model=run[0],
                per_rank={"mean": beside[0], "o": beside[1], "keeper": keeper, "at": position},
            )  # fmt: skip
            checkpointer.wait()
        kept = keeper.kept
        assert _stored_shards(here) == _bytes_of_shards(beside, kept, kept), layout
        found, at = Keeper(torch.empty(0)), Position()
        with _NEVER_WHOLE:
            Checkpointer(here).start(
                run[0], per_rank={"mean": again[0], "o": again[1], "keeper": found, "at": at}
            )
        assert same_bytes(zoo.whole(again), expected), layout
        assert same_bytes(found.kept, expected["blocks.0.up.weight"])
        assert at.at == rank
        zoo.train(again, 3, 4)
        zoo.train(beside, 3, 4)
        assert same_bytes(zoo.whole(again), zoo.whole(beside)), layout
        alone = zoo.build("alone", 3)
        Checkpointer(here).start(
            run[0], per_rank={"mean": alone[0], "o": alone[1], "keeper": found, "at": at}
        )
        assert same_bytes(zoo.whole(alone), expected), layout
        for state_of in checkpointer.read(1).ranks:
            assert same_bytes(state_of["per_rank"]["mean"], dict(alone[0].state_dict()))
    if dist.get_world_size() == 4:
        _more_ranks_are_refused(directory.parents[2] / directory.parent.name / directory.name)


def _more_ranks_are_refused(of_two: Path) -> None:
    """Continue from what a gang of two has saved in the same story: two ranks have no part of it.

    Two others would hold parts of what was saved, beside parts of what was built.
    """
    run, mean = zoo.build("fsdp", 3), zoo.build("fsdp", 4)[0]
    before = [local(parameter).clone() for parameter in mean.parameters()]
    start = partial(Checkpointer(of_two / "fsdp").start, run[0], per_rank={"mean": mean})
    error = error_of(start)
    assert isinstance(error, StateMismatchError)
    assert "per_rank['mean'] is spread over the ranks here, and was saved by 2 rank(s)" in str(
        error
    )
    same_everywhere(str(error))
    assert same_bytes([local(parameter) for parameter in mean.parameters()], before)


def _bytes_of_shards(run: zoo.Run, *more: torch.Tensor) -> int:
    """Return the bytes of what is sharded; for each mesh there is one, whose ranks share it."""
    moments = [tensor for values in run[1].state.values() for tensor in values.values()]
    return sum(
        tensor.numel() * tensor.element_size() * dist.get_world_size() // tensor.device_mesh.size()
        for tensor in (*run[0].state_dict().values(), *moments, *more)
        if isinstance(tensor, DTensor)
    )


def _stored_shards(directory: Path) -> int:
    """Return the bytes of what is sharded in ``per_rank``, in the files of all ranks."""
    files = (directory / "checkpoint=1").glob("state-*.safetensors")
    tensors = [item for file in files for item in load_file(file).items()]
    return sum(tensor.nbytes for name, tensor in tensors if name.startswith("shards."))


def no_rank_makes_room_for_the_whole_in_per_rank(directory: Path, rank: int) -> None:
    """A model and its optimizer in ``per_rank``: what is made is no larger than a rank's part."""
    model, beside = small_model(), build(1)
    step(beside)
    checkpointer = Checkpointer(directory, blocking=True)
    checkpointer.checkpoint(1, model=model, per_rank={"mean": beside[0], "o": beside[1]})
    expected = state(beside)
    for stepped in (False, True):
        again = build(2)
        if stepped:
            step(again)
        live = [local(p).data_ptr() for p in again[0].parameters()]
        with nothing_is_small(2000), rooms() as made:
            checkpointer.start(model, per_rank={"mean": again[0], "o": again[1]})
        assert max(made) < expected["0.weight"].nbytes, (max(made), stepped)
        assert live == [local(p).data_ptr() for p in again[0].parameters()]
        assert same_bytes(state(again), expected)
    with nothing_is_small(2000), rooms() as made:
        checkpointer.start(model)
    assert max(made, default=0) < expected["0.weight"].nbytes, "what is not asked for is not read"


def _spread(seed: int) -> tuple[zoo.Run, zoo.Run]:
    return zoo.build("zero", seed), zoo.build("zero", seed + 1)


def a_spread_optimizer_by_keyword_goes_by_parts(directory: Path, rank: int) -> None:
    """Each rank writes and reads what it steps, beside an optimizer of the model that is such."""
    runs = _spread(0)
    for run in runs:
        zoo.train(run, 1, 2)
    expected = [zoo.whole(run) for run in runs]
    (model, optimizer), (second, of_second) = runs
    consolidated = copy.deepcopy(_consolidated(of_second))
    checkpointer = Checkpointer(directory)
    with _TOGETHER, _NEVER_ONE:
        checkpointer.checkpoint(1, model=model, optimizer=optimizer, second=second, o=of_second)
        checkpointer.wait()
    checkpointer.checkpoint(2, model=model, optimizer=optimizer, second=second, o=of_second)
    checkpointer.wait()
    assert len(checkpointer.read(1).manifest.files_of("state", "safetensors")) == 2
    assert len(checkpointer.read(2).manifest.files_of("state", "safetensors")) == 1
    for epoch in (1, 2):
        stored = checkpointer.read(epoch).other["o"]
        if rank == 0:
            assert same_bytes(stored, consolidated)
        for kind in (ZeroRedundancyOptimizer, torch.optim.AdamW):
            again = _spread(5)
            other = again[1][1]
            if kind is torch.optim.AdamW:
                other = kind(again[1][0].parameters(), lr=0.01)
            with nothing_is_small(2000), rooms() as made:
                Checkpointer(directory).start(
                    *again[0], continue_from=epoch, second=again[1][0], o=other
                )
            if kind is ZeroRedundancyOptimizer:
                assert sum(made) < 0.8 * sum(t.nbytes for e in expected for t in e.values())
            resumed = [again[0], (again[1][0], other)]
            assert same_bytes([zoo.whole(run) for run in resumed], expected), (epoch, kind)


def _consolidated(optimizer: Any) -> Any:
    optimizer.consolidate_state_dict(to=0)
    return optimizer.state_dict() if dist.get_rank() == 0 else None


def a_spread_optimizer_in_per_rank_stays_with_its_ranks(directory: Path, rank: int) -> None:
    """Each rank has the state of what it steps; where another one would step it, it is refused."""
    model, run = small_model(), zoo.build("zero", 1)
    zoo.train(run, 1, 2)
    expected = zoo.whole(run)
    checkpointer = Checkpointer(directory)
    with _NEVER_ONE:
        checkpointer.checkpoint(1, model=model, per_rank={"o": run[1]}, second=run[0])
        checkpointer.wait()
    again = zoo.build("zero", 2)
    Checkpointer(directory).start(model, per_rank={"o": again[1]}, second=again[0])
    assert same_bytes(zoo.whole(again), expected)
    zoo.train(again, 3, 4)
    zoo.train(run, 3, 4)
    assert same_bytes(zoo.whole(again), zoo.whole(run))
    other = zoo.build("zero", 2)
    plain = torch.optim.AdamW(other[0].parameters())
    error = error_of(
        lambda: Checkpointer(directory).start(model, per_rank={"o": plain}, second=other[0])
    )
    assert isinstance(error, StateMismatchError)
    assert "per_rank['o']" in str(error)
    assert "by keyword" in str(error)
    same_everywhere(str(error))


def stages_are_sharded_over_some_ranks(directory: Path, rank: int) -> None:
    """A pipeline of three stages: one on rank 0, one on rank 1, one that ranks 2 and 3 share."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("of", "in"))["in"]

    def built(seed: int) -> zoo.Run:
        torch.manual_seed(seed)
        stage = nn.Sequential(nn.Linear(4, 5 + min(rank, 2)))
        if rank > 1:
            fully_shard(stage, mesh=mesh)
        return stage, torch.optim.AdamW(stage.parameters(), lr=0.1)

    run, again = built(10), built(20)
    for parameter in run[0].parameters():
        parameter.grad = torch.full_like(parameter, 0.1 * (min(rank, 2) + 1))
    run[1].step()
    checkpointer = Checkpointer(directory)
    with _NEVER_WHOLE:
        for epoch in (1, 2):
            checkpointer.checkpoint(
                epoch, model=nn.Module(), per_rank={"stage": run[0], "o": run[1]}
            )
        checkpointer.wait()
        Checkpointer(directory).start(nn.Module(), per_rank={"stage": again[0], "o": again[1]})
    assert same_bytes(zoo.whole(again), zoo.whole(run))
    widths = [
        len(state_of["per_rank"]["stage"]["0.bias"]) for state_of in checkpointer.read(2).ranks
    ]
    assert widths == [5, 6, 7, 7]
