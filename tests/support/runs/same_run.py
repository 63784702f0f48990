"""A training run that uses everything that has a state; test_same_run.py starts it.

    python -m support.runs.same_run DIRECTORY LAST_EPOCH RANKS KILLS

KILLS is a list, one entry an attempt: where to end by SIGKILL, on which rank, and at which call of
that place; one more attempt comes to the end. The ranks of each attempt are forked from this
process, which has imported torch and started no thread. At the end each rank writes a digest of all
that training has made.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ray_imuckpt import Checkpointer, PlateauDetector, staging
from ray_imuckpt.encoding.chunks import checksum
from ray_imuckpt.schedules import Exponential
from ray_imuckpt.storage import local, posix
from support.forking import import_all, on_gang
from support.logs import Messages


class Total:
    """What a rank has seen: an accumulator that differs by rank."""

    def __init__(self) -> None:
        self.value = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


def die_at(where: str, call: int) -> Callable[[], None]:
    """Arrange the end of this process; return what the loop calls at every step."""
    count = 0

    def die() -> None:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(holder: Any, name: str) -> None:
        real = getattr(holder, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            die()
            return real(*arguments, **keywords)

        setattr(holder, name, wrapped)

    if where == "snapshot":
        before(staging.copies, "copy_on_host")
    elif where == "write":
        before(posix, "pwrite_all")
    elif where == "commit":
        before(local.LocalStorage, "put_if")
    return die if where == "loop" else lambda: None


def digest(*values: Any) -> str:
    """One checksum of all tensors and numbers in the values, in their order."""
    pieces: list[bytes] = []

    def add(value: Any) -> None:
        if isinstance(value, DTensor):  # what this rank holds of it
            value = value.to_local()
        if isinstance(value, torch.Tensor):
            pieces.append(
                value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(value, dict):
            for key in value:
                pieces.append(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            pieces.append(repr(value).encode())

    add(values)
    return checksum(pieces)


def train(directory: Path, last: int, rank: int, ranks: int, step: Callable[[], None]) -> None:
    """Train to epoch `last`, or only look at what `start` brings if that is reached."""
    warnings = Messages().begin()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    # DDP sorts its buckets anew after the first step of every process, unless it looks for unused
    # parameters; from three ranks on another order of buckets is another order of the sums.
    model: nn.Module = (
        DistributedDataParallel(net, find_unused_parameters=ranks > 2) if ranks > 1 else net
    )
    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(rank)
    data = TensorDataset(torch.linspace(-1, 1, 24 * 6).reshape(24, 6), torch.linspace(0, 1, 24))
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, num_replicas=ranks, rank=rank, shuffle=True, seed=5
    )
    loader = DataLoader(data, batch_size=3, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
    plateau = PlateauDetector(Exponential(1e-2, 0.9), patience=2)
    noise = np.random.default_rng(11)
    total = Total()
    checkpointer = Checkpointer(directory, snapshot=os.environ.get("SNAPSHOT", "eager"))
    _, _, log, start_epoch, _ = checkpointer.start(
        model, optimizer, scheduler=scheduler, scaler=scaler, plateau=plateau, noise=noise,
        per_rank={"total": total},
    )  # fmt: skip
    for epoch in range(start_epoch, last + 1):
        sampler.set_epoch(epoch)
        losses = []
        for x, y in loader:
            step()
            jitter = random.random() + np.random.rand() + float(noise.standard_normal())
            loss = (model(x + 0.01 * jitter)[:, 0] - y).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            total.value += loss.item()
        scheduler.step()
        mean = torch.tensor(losses[-1])
        if ranks > 1:  # what is not in per_rank must be the same on every rank
            dist.all_reduce(mean)
        if plateau.step(mean.item()):
            plateau.adjust(optimizer)
        log.append({"epoch": epoch, "losses": losses, "rates": scheduler.get_last_lr()})
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log, metrics={"loss": losses[-1]},
            scheduler=scheduler, scaler=scaler, plateau=plateau, noise=noise,
            per_rank={"total": total},
        )  # fmt: skip
    checkpointer.wait()
    replicated: dict[str, Any] = {
        "model": net, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler,
        "plateau": plateau,
    }  # fmt: skip
    told = {
        "start_epoch": start_epoch,
        "replicated": {name: digest(thing.state_dict()) for name, thing in replicated.items()},
        "log": digest(log) if rank == 0 else None,
        "total": total.value,
        "draws": [random.random(), np.random.rand(), noise.random(), *torch.rand(2).tolist()],
        "warnings": warnings,
    }  # fmt: skip
    (directory / f"told-{ranks}-{rank}.json").write_text(json.dumps(told))


def main(directory: Path, last: int, ranks: int, kills: list[list[Any]]) -> None:
    """Begin, kill and begin again, until an attempt comes to its end."""
    import_all()
    for where, struck, call in [*kills, ["", 0, 0]]:

        def play(rank: int) -> None:
            step = die_at(where if rank == struck else "", call)  # noqa: B023
            train(directory, last, rank, ranks, step)
            if ranks > 1:
                dist.destroy_process_group()

        ended = on_gang(ranks, play)
        if where:  # the others may have ended before anyone looked
            assert ended[struck] == -signal.SIGKILL, ended
            assert all(ended.values()), ended
        else:
            assert not any(ended.values()), ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
