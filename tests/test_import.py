"""Checkpoints of other programs become ours: training goes on from them, bit for bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from conftest import compiled
from ray_imuckpt import Checkpointer, StateMismatchError, import_checkpoint, load
from ray_imuckpt.cli import main
from support.migration import Training, same, write_dcp


def _torch(path: Path, t: Training) -> None:
    state = {"model": t.model.state_dict(), "optimizer": t.optimizer.state_dict()}
    torch.save({**state, "scheduler_state_dict": t.scheduler.state_dict(), "epoch": 7}, path)


def _lightning(path: Path, t: Training) -> None:
    torch.save(
        {
            "state_dict": t.model.state_dict(),
            "optimizer_states": [t.optimizer.state_dict()],
            "lr_schedulers": [t.scheduler.state_dict()],
            "epoch": 7,
            "global_step": 30,
            "pytorch-lightning_version": "2.6.0",
            "loops": {},
            "hyper_parameters": {"lr": 0.05},
        },
        path,
    )


def _dcp(path: Path, t: Training) -> None:
    model, optimizer = get_state_dict(t.model, t.optimizer)
    app = {"model": model, "optim": optimizer}
    dcp.save({"app": app, "scheduler": t.scheduler.state_dict(), "epoch": 7}, checkpoint_id=path)


def _dcp_flat(path: Path, t: Training) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = get_state_dict(t.model, t.optimizer, options=options)
    state = {"model": model, "optimizer": optimizer, "scheduler": t.scheduler.state_dict()}
    dcp.save({**state, "epoch": 7}, checkpoint_id=path)


def _dcp_by_position(path: Path, t: Training) -> None:
    state = {"model": t.model.state_dict(), "optimizer": t.optimizer.state_dict()}
    dcp.save({**state, "scheduler": t.scheduler.state_dict(), "epoch": 7}, checkpoint_id=path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("write", [_torch, _lightning, _dcp, _dcp_flat, _dcp_by_position])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_training_goes_on_from_it_to_the_last_bit(
    tmp_path: Path,
    write: Callable[[Path, Training], None],
    kind: type[torch.optim.Optimizer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Model, optimizer and scheduler, from a file or a directory; the generators stay."""
    there = Training(kind).train(3)
    write(tmp_path / "source", there)
    wanted = there.train(3).weights()
    imported = import_checkpoint(tmp_path / "source", tmp_path / "run")
    assert (imported.epoch, imported.tensors) == (7, 9)
    checkpointer = Checkpointer(tmp_path / "run")
    checkpointer.verify(7)
    here = Training(kind)
    torch.manual_seed(11)
    started = checkpointer.start(here.model, here.optimizer, scheduler=here.scheduler)
    assert started.start_epoch == 8
    assert same(here.train(3).weights(), wanted)
    assert torch.initial_seed() == 11
    assert "holds no random state" in caplog.text
    checkpointer.checkpoint(8, model=here.model, optimizer=here.optimizer)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [7, 8]


def test_the_pieces_of_a_gang_become_whole(tmp_path: Path) -> None:
    """Sharded by rows and by columns, some of two and some of one rank: each into its own file."""
    there = Training().train(2)
    weights = there.weights()
    moments: dict[Any, Any] = there.optimizer.state_dict()["state"]
    values: dict[str, Any] = {f"model/{name}": tensor for name, tensor in weights.items()}
    first = weights["0.weight"]
    values["model/0.weight"] = {(0, 0): first[:4].clone(), (4, 0): first[4:].clone()}
    last = weights["2.weight"]
    values["model/2.weight"] = {(0, 0): last[:, :3].clone(), (0, 3): last[:, 3:].clone()}
    for number, (name, _) in enumerate(there.model.named_parameters()):
        for part, tensor in moments[number].items():
            values[f"optimizer/state/{name}/{part}"] = tensor
    moment = moments[0]["exp_avg"]
    halves = {(0, 0): moment[:3].clone(), (3, 0): moment[3:].clone()}
    values["optimizer/state/0.weight/exp_avg"] = halves
    groups = [
        {**group, "params": [name for name, _ in there.model.named_parameters()]}
        for group in there.optimizer.state_dict()["param_groups"]
    ]
    values["optimizer/param_groups"] = groups
    values["ema/shadow"] = {(0,): torch.arange(3.0), (3,): torch.arange(2.0)}
    write_dcp(tmp_path / "dcp", values)
    wanted = there.train(2).weights()

    import_checkpoint(tmp_path / "dcp", tmp_path / "run", epoch=1)
    checkpointer = Checkpointer(tmp_path / "run")
    checkpointer.verify(1)
    stored = checkpointer.read(1)
    assert same(stored.model, weights)
    assert stored.other["ema"]["shadow"].tolist() == [0.0, 1.0, 2.0, 0.0, 1.0]
    assert sorted(path.name[-13:] for path in (tmp_path / "run").rglob("model-*")) == [
        "0.safetensors",
        "1.safetensors",
    ]
    here = Training()
    checkpointer.start(here.model, here.optimizer)
    assert same(here.train(2).weights(), wanted)


def test_everything_else_goes_where_it_belongs(tmp_path: Path) -> None:
    """Log, step, metrics, namespaces and arrays; what cannot be stored is named."""
    there = Training()
    torch.save(
        {
            "model_state_dict": there.model.state_dict(),
            "epoch": 3,
            "step": 90,
            "loss": 0.5,
            "history": [{"loss": 1.0}, {"loss": np.float64(0.5)}],
            "args": argparse.Namespace(lr=0.1, data=Path("data")),
            "means": np.arange(3.0),
            "sparse": torch.eye(2).to_sparse(),
        },
        tmp_path / "a.pt",
    )
    imported = import_checkpoint(tmp_path / "a.pt", tmp_path / "run")
    assert imported.optimizer is None
    assert imported.left.keys() == {"sparse", "random generators"}
    stored = Checkpointer(tmp_path / "run").read(3)
    assert (stored.step, stored.metrics) == (90, {"loss": 0.5})
    assert stored.log == [{"loss": 1.0}, {"loss": 0.5}]
    assert stored.other["args"] == {"lr": 0.1, "data": "data"}
    assert stored.other["means"].tolist() == [0.0, 1.0, 2.0]


def test_names_are_those_of_the_bare_module(tmp_path: Path) -> None:
    """Saved under DDP and torch.compile; tied tensors, transposed ones and extra state stay so."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight
            self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())

        def get_extra_state(self) -> Any:
            return {"seen": 5}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    model = Tied()
    state = {f"module.{name}": value for name, value in compiled(model).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    import_checkpoint(tmp_path / "a.pth", tmp_path / "run", epoch=0)
    other = Tied()
    load(other, tmp_path / "run" / "checkpoint=0")
    assert other.seen == 5
    assert other.two.weight is other.one.weight
    assert same(dict(other.named_parameters()), dict(model.named_parameters()))
    stored = Checkpointer(tmp_path / "run").read(0).model
    assert stored["one.weight"].data_ptr() == stored["two.weight"].data_ptr()
    assert stored["turned"].stride() == (1, 3)


def test_safetensors_and_a_part_of_a_model(tmp_path: Path) -> None:
    """Several files in a directory; of a LightningModule what is in ``self.model``."""
    there = Training()
    (tmp_path / "hub").mkdir()
    named = {f"model.{name}": tensor for name, tensor in there.weights().items()}
    first = dict(list(named.items())[:3])
    save_file(first, tmp_path / "hub" / "model-00001-of-00002.safetensors")
    rest = {name: tensor for name, tensor in named.items() if name not in first}
    rest["head.weight"] = torch.ones(2)
    save_file(rest, tmp_path / "hub" / "model-00002-of-00002.safetensors")
    imported = import_checkpoint(tmp_path / "hub", tmp_path / "run", epoch=2, strip="model.")
    assert imported.kind == "safetensors"
    assert "1 tensors of the model" in imported.left
    assert same(Checkpointer(tmp_path / "run").read(2).model, there.weights())


def test_an_optimizer_whose_parameters_cannot_be_named_is_left_and_told(tmp_path: Path) -> None:
    """Of two groups the order is not known, nor of a part of the model; their names mend it."""
    there = Training()
    names = [name for name, _ in there.model.named_parameters()]
    weights = [n for n in names if "weight" in n]
    order = [*weights, *(n for n in names if "weight" not in n)]
    parameters = dict(there.model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in order[: len(weights)]]},
        {"params": [parameters[n] for n in order[len(weights) :]], "weight_decay": 0.0},
    ]
    there.optimizer = torch.optim.AdamW(groups, lr=0.05)
    there.scheduler = torch.optim.lr_scheduler.StepLR(there.optimizer, step_size=2)
    there.train(2)
    state = {"model": there.model.state_dict(), "optimizer": there.optimizer.state_dict()}
    torch.save(state, tmp_path / "a.pt")
    imported = import_checkpoint(tmp_path / "a.pt", tmp_path / "run", epoch=1)
    assert imported.optimizer is None
    assert "2 groups" in imported.left["optimizer"]
    assert "--parameters" in imported.left["optimizer"]

    (tmp_path / "names").write_text("\n".join(order))
    command = ["import", str(tmp_path / "a.pt"), str(tmp_path / "run"), "--epoch", "2", "--json"]
    assert main([*command, "--parameters", str(tmp_path / "names")]) == 0
    optimizer: Any = Checkpointer(tmp_path / "run").read(2).optimizer
    assert [group["params"] for group in optimizer["param_groups"]] == [
        order[: len(weights)],
        order[len(weights) :],
    ]
    moments = there.optimizer.state[parameters["2.bias"]]["exp_avg"]
    assert torch.equal(optimizer["state"]["2.bias"]["exp_avg"], moments)

    swapped = import_checkpoint(
        tmp_path / "a.pt", tmp_path / "run", epoch=3, parameters=order[::-1]
    )
    assert "has shape" in swapped.left["optimizer"]


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    """The class is not in the file; its options tell."""
    _torch(tmp_path / "a.pt", Training().train(1))
    import_checkpoint(tmp_path / "a.pt", tmp_path / "run")
    here = Training(torch.optim.SGD)
    with pytest.raises(StateMismatchError, match="betas"):
        Checkpointer(tmp_path / "run").start(here.model, here.optimizer)


def test_the_command_tells_what_came_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lines and as JSON, also in a run that has checkpoints already."""
    _lightning(tmp_path / "a.ckpt", Training().train(1))
    command = ["import", str(tmp_path / "a.ckpt"), str(tmp_path / "run")]
    assert main(command) == 0
    out = capsys.readouterr().out
    for text in (
        "checkpoint=7, from Lightning",
        "9 tensors",
        "of 6 parameters",
        "loops",
        "scheduler",
    ):
        assert text in out
    assert main([*command, "--json", "--epoch", "9"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 30
    assert main(["ls", str(tmp_path / "run")]) == 0
    assert "2 checkpoints" in capsys.readouterr().out
    assert Checkpointer(tmp_path / "run").index_of_last_checkpoint() == 9
