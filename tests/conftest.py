"""Shared builders: small models, and a loop that trains them."""

from __future__ import annotations

import logging
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from ray_imuckpt import Checkpointer
from ray_imuckpt.storage.engines import retrying

pytest_plugins = ["support.processes", "servers.fixtures"]

HERE = Path(__file__).parent


def python_path() -> str:
    """For processes that import what lies here, and all that can be imported in this one."""
    return os.pathsep.join([str(HERE), *sys.path])


def start_ray(where: int | str) -> None:
    """Ray in silence, with so many CPUs or at an address."""
    import ray  # not every test needs it

    here = {"num_cpus": where, "include_dashboard": False}
    ray.init(
        **({"address": where} if isinstance(where, str) else here),
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
    )


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed for a passing reason is tried again at once."""
    monkeypatch.setattr(retrying, "FIRST_SPAN", 0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine."""
    import ray

    start_ray(4)
    yield
    ray.shutdown()


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as quantized weights are."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return cast("Wrapper", made)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares no class method
        cls, function: Any, _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Wrapper(args[0].inner)
        raise NotImplementedError(function)


def small_model(seed: int = 0) -> nn.Sequential:
    """Linear, batch norm, dropout, linear; the last bias is frozen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    model.get_parameter("3.bias").requires_grad_(False)
    return model


def compiled(model: nn.Module) -> nn.Module:
    """Return a model wrapped by `torch.compile`, which compiles nothing."""
    return cast("nn.Module", torch.compile(model, backend="eager"))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with two parameter groups."""
    weights = [p for n, p in model.named_parameters() if p.requires_grad and "weight" in n]
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "weight" not in n]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def train(
    directory: str | Path, last: int, continue_from: Any = "last", **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, list[Any], int]:
    """Train to epoch `last`; returns the model, the optimizer, the log and the first epoch trained.

    Draws from Python's, NumPy's and torch's generators at every epoch.
    """
    random.seed(7)
    np.random.seed(7)
    model = small_model()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    checkpointer = Checkpointer(directory, continue_from=continue_from, **options)
    started = checkpointer.start(model, optimizer, scheduler=scheduler)
    log = started.log
    for epoch in range(started.start_epoch, last + 1):
        x = torch.randn(16, 4) * (1 + random.random()) + float(np.random.rand())
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        log.append({"epoch": epoch, "loss": loss.item()})
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=log,
            metrics={"loss": loss},
            scheduler=scheduler,
        )
    checkpointer.wait()
    return model, optimizer, log, started.start_epoch


def same_bytes(a: Any, b: Any) -> bool:
    """Whether two trees of dicts, lists, tensors and values are equal, tensors byte for byte."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.detach()
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .equal(b.detach().contiguous().reshape(-1).view(torch.uint8))
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bytes(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bytes, a, b))
    return bool(a == b)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """A directory with the checkpoints of a short run."""

    def make(last: int = 3, **options: Any) -> Path:
        train(tmp_path / "run", last, **options)
        return tmp_path / "run"

    return make


def in_a_child(call: Callable[[], bool]) -> bool:
    """What it says in a process that is forked now."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if call() else 1)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0
