"""A checkpoint speaks of what is inside of wrappers: written under one, it continues under any."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from conftest import compiled, same_bytes
from ray_imuckpt import Checkpointer, StateMismatchError, UnsupportedStateError
from support.wrappers import (
    AcceleratedOptimizer,
    AcceleratedScheduler,
    FabricModule,
    FabricOptimizer,
    LightningOptimizer,
    install,
)


def _parts_compiled(model: nn.Module) -> nn.Module:
    model.set_submodule("layers.0", compiled(model.get_submodule("layers.0")))
    return model


def _parts_recomputed(model: nn.Module) -> nn.Module:
    model.set_submodule("layers.0", checkpoint_wrapper(model.get_submodule("layers.0")))
    return model


def _part_distributed(model: nn.Module) -> nn.Module:
    model.layers = DistributedDataParallel(model.get_submodule("layers"))
    return model


MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "fabric": lambda model: FabricModule(model, model),
    "fabric, ddp": lambda model: FabricModule(DistributedDataParallel(model), model),
    "fabric, compile, ddp": lambda m: FabricModule(compiled(DistributedDataParallel(m)), m),
    "compile, fabric": lambda model: compiled(FabricModule(model, model)),
    "dataparallel": DataParallel,
    "ddp, compile": lambda model: DistributedDataParallel(compiled(model)),
    "compile, ddp": lambda model: compiled(DistributedDataParallel(model)),
    "parts compiled": _parts_compiled,
    "ddp, parts compiled": lambda model: DistributedDataParallel(_parts_compiled(model)),
    "parts recomputed": _parts_recomputed,
    "parts recomputed, compiled": lambda model: compiled(_parts_recomputed(model)),
    "a part in ddp": _part_distributed,
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda optimizer: optimizer,
    "accelerate": AcceleratedOptimizer,
    "fabric": FabricOptimizer,
    "lightning": LightningOptimizer,
    "accelerate, fabric": lambda optimizer: AcceleratedOptimizer(FabricOptimizer(optimizer)),
}


class Net(nn.Module):
    """Like a LightningModule: what is trained is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.layers(data)


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-ins, and a process group of this process alone."""
    install(monkeypatch)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/pg", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _build(wrap: str, wrap_optimizer: str, seed: int = 0) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    return MODELS[wrap](net), OPTIMIZERS[wrap_optimizer](optimizer)


def _train(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.zero_grad()
        model(torch.ones(4, 2) * step).square().sum().backward()
        optimizer.step()


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("then", MODELS)
def test_a_model_saved_under_one_wrapper_continues_under_any(tmp_path: Path, then: str) -> None:
    """The names are those of the bare module, in the model's state and in the optimizer's."""
    run = _build(then, "none")
    _train(*run, 1, 2)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    checkpointer.checkpoint(2, model=run[0], optimizer=run[1], again=run[0])
    _train(*run, 3, 4)
    read = checkpointer.read(2)
    assert read.optimizer is not None
    assert set(read.model) == set(read.optimizer["state"]) == set(Net().state_dict())
    for now, wrap in MODELS.items():
        resumed = _build(now, "none", seed=1)
        checkpointer.start(*resumed)
        _train(*resumed, 3, 4)
        assert same_bytes(_values(resumed[0]), _values(run[0])), now
        again = wrap(Net())
        checkpointer.start(_build(then, "none")[0], again=again)
        assert same_bytes(_values(again), [read.other["again"][n] for n in Net().state_dict()])


@pytest.mark.parametrize(("then", "now"), [*itertools.product(OPTIMIZERS, OPTIMIZERS)])
def test_an_optimizer_saved_under_one_wrapper_continues_under_any(
    tmp_path: Path, then: str, now: str
) -> None:
    """Its class is that of the inner one, as the optimizer of the model and by keyword."""
    run = _build("none", then)
    _train(*run, 1, 2)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    checkpointer.checkpoint(2, model=run[0], optimizer=run[1], again=run[1])
    _train(*run, 3, 4)
    assert checkpointer.read(2).classes == {"again": "Adam"}
    for name in ("optimizer", "again"):
        for stepped in (0, 3):
            resumed = _build("none", now, seed=1)
            _train(*resumed, 1, stepped)
            checkpointer.start(resumed[0], **{name: resumed[1]})
            _train(*resumed, 3, 4)
            assert same_bytes(_values(resumed[0]), _values(run[0]))


@pytest.mark.parametrize("wrap", OPTIMIZERS)
def test_another_optimizer_in_a_wrapper_of_the_same_name_is_refused(
    tmp_path: Path, wrap: str
) -> None:
    """Before anything is changed, as the optimizer of the model and by keyword."""
    run = _build("none", wrap)
    _train(*run, 1, 1)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    checkpointer.checkpoint(1, model=run[0], optimizer=run[1], again=run[1])
    net = Net()
    before = [value.clone() for value in _values(net)]
    other = OPTIMIZERS[wrap](torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    for name in ("optimizer", "again"):
        with pytest.raises(StateMismatchError, match=r"Adam.*SGD|SGD.*Adam"):
            checkpointer.start(net, **{name: other})
    assert same_bytes(_values(net), before)
    assert not other.state


@pytest.mark.parametrize("wrap", OPTIMIZERS)
def test_wrapped_optimizers_are_held_back(
    tmp_path: Path, wrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The fence is put around the step of the inner one."""
    run = _build("none", wrap)
    _train(*run, 1, 1)
    expected = [value.clone() for value in _values(run[0])]
    checkpointer = Checkpointer(tmp_path / "run", snapshot="overlap")
    with caplog.at_level(logging.WARNING, "ray_imuckpt"), checkpointer:
        checkpointer.checkpoint(1, model=run[0], optimizer=run[1])
        _train(*run, 2, 2)
    assert not caplog.messages
    read = checkpointer.read(1).model
    assert same_bytes([read[name] for name in Net().state_dict()], expected)


@pytest.mark.parametrize("wrap", OPTIMIZERS)
def test_a_wrapped_optimizer_is_put_back_where_another_object_refuses(
    tmp_path: Path, wrap: str
) -> None:
    """What is inside the wrapper has its own state again."""

    class Refuses:
        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, _: dict[str, int]) -> None:
            raise KeyError("no")

    run = _build("none", wrap)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    checkpointer.checkpoint(1, model=run[0], again=run[1], z=Refuses())
    _train(*run, 1, 2)
    before = run[1].state_dict()
    with pytest.raises(StateMismatchError, match="'z'"):
        checkpointer.start(run[0], again=run[1], z=Refuses())
    assert same_bytes(run[1].state_dict(), before)
    assert run[1].state


def test_a_scheduler_of_accelerate_is_the_one_inside(tmp_path: Path) -> None:
    """Saved with the wrapper it continues without, and the other way round."""

    def build(wrapped: bool) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(Net().parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return optimizer, AcceleratedScheduler(scheduler) if wrapped else scheduler

    for wrapped in (True, False):
        checkpointer = Checkpointer(tmp_path / str(wrapped), blocking=True)
        optimizer, scheduler = build(wrapped)
        optimizer.step()
        scheduler.step()
        checkpointer.checkpoint(1, model=Net(), scheduler=scheduler)
        _, resumed = build(not wrapped)
        checkpointer.start(Net(), scheduler=resumed)
        assert same_bytes(resumed.state_dict(), scheduler.state_dict())


def test_averaged_weights_continue_around_any_wrapper(tmp_path: Path) -> None:
    """Of a model that is averaged the names are those of the bare one, too."""
    saved = AveragedModel(DistributedDataParallel(Net()))
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    checkpointer.checkpoint(1, model=Net(), average=saved)
    assert "module.layers.0.weight" in checkpointer.read(1).other["average"]
    for wrap in (MODELS["none"], compiled, DistributedDataParallel, _parts_compiled):
        resumed = AveragedModel(wrap(Net()))
        checkpointer.start(Net(), average=resumed)
        assert same_bytes(_values(resumed), _values(saved))


def test_a_part_that_fabric_has_set_up_alone_is_refused(tmp_path: Path) -> None:
    """Its names do not lead back to it: torch would load nothing, and say nothing."""
    net = Net()
    net.layers = FabricModule(net.layers, net.layers)  # type: ignore[assignment]
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    for call in (checkpointer.start, lambda model: checkpointer.checkpoint(1, model=model)):
        with pytest.raises(UnsupportedStateError, match="'layers' was set up by Lightning Fabric"):
            call(net)


def test_what_is_sharded_on_one_rank_alone_is_whole(tmp_path: Path) -> None:
    """A mesh of this process alone: its parts are all there is, in the background and blocking."""
    model = nn.Linear(4, 3)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    expected = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    for blocking in (False, True):
        checkpointer = Checkpointer(tmp_path / "run", blocking=blocking)
        checkpointer.checkpoint(1, model=model, optimizer=optimizer, more={"one": model.weight})
        loaded = checkpointer.read(1)
        assert same_bytes(loaded.model, expected)
        assert same_bytes(loaded.other["more"]["one"], expected["weight"])


def test_what_a_validation_has_unsharded_is_saved_and_restored_as_shards(tmp_path: Path) -> None:
    """FSDP2's outermost module keeps whole parameters after it, which no optimizer knows."""
    mesh, x = init_device_mesh("cpu", (1,)), torch.ones(1, 4)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).sum().backward()
    optimizer.step()

    def validate() -> torch.Tensor:
        with torch.no_grad():
            made: torch.Tensor = model(x).clone()
        assert type(model[1].weight) is nn.Parameter, "it is whole"
        return made

    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    made = validate()
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    for restore in (lambda: checkpointer.start(model, optimizer), lambda: checkpointer.load(model)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert not torch.equal(validate(), made)
        restore()
        assert torch.equal(validate(), made)
