"""Where the elements of a tensor lie in memory: a resumed run goes on as if it had not ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer

Build = Callable[[nn.Module], torch.optim.Optimizer]

LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.randn(6, 5),
    "channels_last": lambda: torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 6).t(),
    "permuted": lambda: torch.randn(2, 3, 4, 5, 6).permute(3, 0, 4, 2, 1),
    "channels_last_3d": lambda: torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
    "channels_last of one channel": lambda: torch.randn(4, 1, 5, 5).to(
        memory_format=torch.channels_last
    ),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, **how: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **how),
    "Adam": lambda p, **how: torch.optim.Adam(p, lr=0.1, amsgrad=True, **how),
    "AdamW": lambda p, **how: torch.optim.AdamW(p, lr=0.1, **how),
    "Adagrad": lambda p, **how: torch.optim.Adagrad(p, lr=0.1, **how),
}
KERNELS = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class Quadratic(nn.Module):
    """A loss that pulls every element another way."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(LAYOUTS[layout]())
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, step: int) -> torch.Tensor:
        pull = torch.arange(self.weight.numel()).reshape(self.weight.shape).sin() + step
        return (self.weight * pull).square().sum() + self.bias.square().sum()


def _build(layout: str, optimizer: str, kernel: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Quadratic(layout)
    return model, OPTIMIZERS[optimizer](model.parameters(), **KERNELS[kernel])


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()


def _all(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Every tensor with its strides (but for those that nothing is ever stepped along)."""
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()["state"]}
    strides = [
        [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size != 1]
        for values in state["optimizer"].values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    return {**state, "strides": strides}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_pairs_the_same_elements(
    tmp_path: Path, optimizer: str, kernel: str, layout: str
) -> None:
    """Fresh optimizers and those that have stepped go on byte for byte."""
    run = _build(layout, optimizer, kernel)
    _train(*run, 1, 2)
    Checkpointer(tmp_path, blocking=True).checkpoint(2, model=run[0], optimizer=run[1])
    _train(*run, 3, 4)
    for stepped in (0, 3):
        resumed = _build(layout, optimizer, kernel)
        _train(*resumed, 1, stepped)
        assert Checkpointer(tmp_path).start(*resumed).start_epoch == 3
        _train(*resumed, 3, 4)
        assert same_bytes(_all(*resumed), _all(*run))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"snapshot": "eager"}, {"snapshot": "overlap"}], ids=str)
def test_every_way_to_copy_the_state_keeps_its_layout(
    tmp_path: Path, options: dict[str, str], layout: str
) -> None:
    """The host copies are contiguous; what they are copies of is recorded."""
    run = _build(layout, "AdamW", "fused")
    _train(*run, 1, 2)
    checkpointer = Checkpointer(tmp_path, **options)  # type: ignore[arg-type]
    checkpointer.checkpoint(2, model=run[0], optimizer=run[1])
    _train(*run, 3, 4)
    checkpointer.wait()
    resumed = _build(layout, "AdamW", "fused")
    Checkpointer(tmp_path).start(*resumed)
    _train(*resumed, 3, 4)
    assert same_bytes(_all(*resumed), _all(*run))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_passed_by_keyword_and_by_rank_keeps_its_layout(
    tmp_path: Path, layout: str
) -> None:
    """A second model with its optimizer, averaged weights, and an object that keeps a tensor."""

    class Keeper:
        def __init__(self) -> None:
            self.kept = LAYOUTS[layout]()

        def state_dict(self) -> dict[str, Any]:
            return {"kept": self.kept}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.kept = state["kept"]

    def build() -> dict[str, Any]:
        model, optimizer = _build(layout, "Adam", "fused")
        average = torch.optim.swa_utils.AveragedModel(model)
        return {"second": model, "its_optimizer": optimizer, "average": average}

    def train(objects: dict[str, Any], first: int, last: int) -> None:
        for step in range(first, last + 1):
            _train(objects["second"], objects["its_optimizer"], step, step)
            objects["average"].update_parameters(objects["second"])

    run, keeper, model = build(), Keeper(), nn.Linear(2, 2)
    train(run, 1, 2)
    Checkpointer(tmp_path, blocking=True).checkpoint(
        2, model=model, per_rank={"keeper": keeper}, plain=keeper.kept, **run
    )
    train(run, 3, 4)
    resumed, other = build(), Keeper()
    started = Checkpointer(tmp_path).start(model, per_rank={"keeper": other}, **resumed)
    train(resumed, 3, 4)
    assert same_bytes(dict(resumed["average"].state_dict()), dict(run["average"].state_dict()))
    pairs = [(o["second"], o["its_optimizer"]) for o in (resumed, run)]
    assert same_bytes(_all(*pairs[0]), _all(*pairs[1]))
    for came_back in (other.kept, started.other["plain"]):
        assert torch.equal(came_back, keeper.kept)
        assert came_back.is_contiguous() == keeper.kept.is_contiguous()
        assert came_back.is_contiguous() or came_back.stride() == keeper.kept.stride()


def test_what_is_read_has_its_layout_and_other_readers_see_the_same_values(tmp_path: Path) -> None:
    """Bytes are in the order of the indices, strides stand beside them."""
    model, optimizer = _build("channels_last", "Adam", "fused")
    _train(model, optimizer, 1, 2)
    Checkpointer(tmp_path, blocking=True).checkpoint(2, model=model, optimizer=optimizer)
    loaded = Checkpointer(tmp_path).read()
    weight = model.get_parameter("weight")
    moment = optimizer.state[weight]["exp_avg"]
    assert loaded.optimizer is not None
    for read, live in (
        (loaded.model["weight"], weight),
        (loaded.optimizer["state"]["weight"]["exp_avg"], moment),
    ):
        assert same_bytes(read, live)
        assert read.stride() == live.stride() != LAYOUTS["contiguous"]().stride()
    (file,) = tmp_path.glob("checkpoint=2/model-*.safetensors")
    assert same_bytes(load_file(file)["weight"], weight)


def test_state_made_before_the_model_was_converted_goes_on_as_it_was(tmp_path: Path) -> None:
    """Adagrad makes its state when it is built; fused, it then pairs what lies at one place."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3)
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, fused=True)
        return model.to(memory_format=torch.channels_last), optimizer  # type: ignore[call-overload]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last + 1):
            optimizer.zero_grad()
            pull = torch.arange(108).reshape(4, 3, 3, 3).sin() * step
            (model.get_parameter("weight") * pull).sum().backward()
            model.get_parameter("bias").grad = torch.ones(4)
            optimizer.step()

    run = build()
    train(*run, 1, 2)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(2, model=run[0], optimizer=run[1], again=run[1])
    train(*run, 3, 4)
    for stepped in (0, 3):
        for named in (False, True):
            resumed = build()
            train(*resumed, 1, stepped)
            name = "again" if named else "optimizer"
            keywords: dict[str, Any] = {name: resumed[1]}
            checkpointer.start(resumed[0], **keywords)
            train(*resumed, 3, 4)
            assert same_bytes(_all(*resumed), _all(*run))


@pytest.mark.parametrize("stepped", [0, 2])
@pytest.mark.parametrize("named", [False, True], ids=["optimizer", "keyword"])
@pytest.mark.parametrize(
    ("then", "now"), [("contiguous", "channels_last"), ("channels_last", "contiguous")]
)
def test_state_follows_a_parameter_that_lies_otherwise_now(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    then: str,
    now: str,
    named: bool,
    stepped: int,
) -> None:
    """Else the fused kernels would pair other elements; and it is told, since last bits differ."""
    formats: dict[str, Any] = {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
    }

    def build(layout: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Quadratic("channels_last").to(memory_format=formats[layout])  # type: ignore[call-overload]
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    run, expected = build(then), build(now)
    name = "again" if named else "optimizer"
    _train(*run, 1, 2)
    _train(*expected, 1, 2)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    saved: dict[str, Any] = {name: run[1]}
    checkpointer.checkpoint(2, model=run[0], **saved)
    resumed = build(now)
    live: dict[str, Any] = {name: resumed[1]}
    _train(*resumed, 1, stepped)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        checkpointer.start(resumed[0], **live)
    assert "weight and 0 more parameters lie otherwise in memory" in caplog.text
    _train(*resumed, 3, 4)
    _train(*expected, 3, 4)
    assert same_bytes(_all(*resumed), _all(*expected))
