"""A run that is killed again and again; test_kills.py and soak/kills.py do.

python -m support.runs.killed DIRECTORY SEED KILLS RANKS [sharded]    prints what came, as JSON

Each attempt is forked from this process, which has imported torch and started no thread, continues
from the last checkpoint, and is killed with SIGKILL at a moment drawn at random; of a gang one rank
is, and the others must end by themselves. It announces on a pipe what it knows to be durable. Where
the model is sharded, all ranks write; they see the same data, so that a run alone ends alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ray_imuckpt import Checkpointer, ImuckptError, Retention
from support.waiting import until_committed

PATIENCE = 60  # seconds within which the other rank of a gang has to end


class Net(nn.Module):
    """Trained, frozen, and random parts."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(96, 96)
        self.frozen = nn.Linear(48, 48).requires_grad_(requires_grad=False)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(self.dropout(x))


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A name of the whole state; a collective where it is sharded."""
    found = hashlib.blake2b(digest_size=8)
    states = optimizer.state_dict()["state"].values()
    moments = (state[name] for state in states for name in sorted(state))
    for tensor in (*model.state_dict().values(), *moments):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found.update(whole.numpy().tobytes())
    return found.hexdigest()


def train(
    directory: str, seed: int, pipe: int, last: int | None = None, *, sharded: bool = False
) -> None:
    """Train and save, in ways drawn by `seed`; the state follows from the epoch alone."""
    draw = random.Random(seed)
    torch.manual_seed(5)
    model = Net()
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.trained.parameters(), lr=1e-3)
    kind = draw.choice(("eager", "overlap", "blocking"))
    checkpointer = Checkpointer(
        directory,
        retention=Retention(keep_last=3) if draw.random() < 0.5 else None,
        blocking=kind == "blocking",
        snapshot="overlap" if kind == "overlap" else "eager",
        timeout=PATIENCE / 4,  # for a rank that is killed before it has met the others
    )
    _, _, log, epoch, _ = checkpointer.start(model, optimizer)

    def tell(*words: object) -> None:
        os.write(pipe, (" ".join(map(str, words)) + "\n").encode())

    tell("ready")
    if log:
        tell("started", log[-1]["digest"], digest(model, optimizer))
    while last is None or epoch <= last:
        optimizer.zero_grad()
        model(torch.randn(4, 96)).square().mean().backward()
        optimizer.step()
        log.append({"epoch": epoch, "digest": digest(model, optimizer)})
        pending = checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log)
        if draw.random() < 0.1:  # the same epoch once more
            pending = checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log)
        if kind == "blocking" or draw.random() < 0.3:
            assert pending is not None
            pending.wait()
            tell("durable", epoch)
        if draw.random() < 0.2 and not dist.is_initialized():
            checkpointer.prune(keep_last=3)
        epoch += 1
    checkpointer.wait()


def victim(directory: Path, seed: int, rank: int, ranks: int, pipe: int, *, sharded: bool) -> None:
    """One rank of one attempt; does not return."""
    status = 1
    try:
        if ranks > 1:
            store = dist.FileStore(str(directory / f"store-{seed}"), ranks)
            patience = timedelta(seconds=PATIENCE)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=ranks, timeout=patience
            )
        os.write(pipe, b"joined\n")
        train(str(directory / "run"), seed, pipe, sharded=sharded)
    except (ImuckptError, RuntimeError):  # in a gang: the other rank is gone
        status = 3
    except BaseException:  # noqa: BLE001 - it is told by its status
        traceback.print_exc()
    finally:
        os._exit(status)


class Campaign:
    """One run, from kill to kill."""

    def __init__(self, where: Path, seed: int, ranks: int, *, sharded: bool) -> None:
        self.sharded = sharded
        self.where = where
        self.draw = random.Random(seed)
        self.ranks = ranks
        self.told: Counter[str] = Counter()
        self.digests: dict[int, str] = {}  # of every epoch that was ever seen
        self.durable = 0
        self.begun: set[str] = set()  # directories without a manifest
        self.problems: list[str] = []

    def attempt(self, number: int) -> None:
        """Begin, kill, and see what is left."""
        read, write = os.pipe()
        pids = []
        for rank in range(self.ranks):
            pid = os.fork()
            if not pid:
                os.close(read)
                victim(self.where, number, rank, self.ranks, write, sharded=self.sharded)
            pids.append(pid)
        os.close(write)
        told = b""
        # Who has not met the others waits for them; what is sharded is killed in its saves.
        while told.count(b"ready\n" if self.sharded else b"joined\n") < self.ranks:
            more = os.read(read, 4096)
            assert more, f"the ranks have ended before they were killed: {told.decode()}"
            told += more
        if number > 1:  # however slow the disk is, there is something to lose
            until_committed(self.where / "run")
        time.sleep(self.draw.uniform(0, 0.2 if self.ranks == 1 else 1.5 if self.sharded else 0.6))
        struck = self.draw.randrange(self.ranks)
        os.kill(pids[struck], signal.SIGKILL)
        self.told[f"kills of rank {struck}"] += 1
        for rank, pid in enumerate(pids):
            self.ended(pid, "killed" if rank == struck else "left")
        with os.fdopen(read, "rb") as pipe:
            told += pipe.read()
        for line in told.decode().splitlines():
            what, *words = line.split()
            if what == "durable":
                self.durable = max(self.durable, int(words[0]))
            elif what == "started" and words[0] != words[1]:
                self.problems.append(f"kill {number}: another state than saved: {line}")

    def ended(self, pid: int, which: str) -> None:
        """Wait for the end of a rank, and hold its status against what it may be."""
        deadline = time.monotonic() + 2 * PATIENCE
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.told["hangs"] += 1
                os.kill(pid, signal.SIGKILL)
                deadline += PATIENCE
            time.sleep(0.002)
        status = os.waitstatus_to_exitcode(found[1])
        if status not in ((-signal.SIGKILL,) if which == "killed" else (3,)):
            self.problems.append(f"the rank that was {which} ended with {status}")

    def look(self) -> None:
        """Count what is lost or torn; as another process would see it."""
        checkpointer = Checkpointer(self.where / "run")
        found = checkpointer.list_existing_checkpoint_indices()
        names = {f"checkpoint={epoch}" for epoch in found}
        begun = {path.name for path in (self.where / "run").glob("checkpoint=*")} - names
        self.told["killed between first file and commit"] += not begun <= self.begun
        self.begun = begun
        if self.durable and (not found or found[-1] < self.durable):
            self.told["lost"] += 1
        for epoch in found[-3:]:
            self.told["verified"] += 1
            try:
                checkpointer.verify(epoch)
                log = checkpointer.read(epoch).log
            except ImuckptError as error:
                self.told["torn"] += 1
                self.problems.append(str(error))
                continue
            self.told["torn"] += [entry["epoch"] for entry in log] != list(range(1, epoch + 1))
            for entry in log:
                if self.digests.setdefault(entry["epoch"], entry["digest"]) != entry["digest"]:
                    self.told["another run"] += 1

    def result(self) -> dict[str, object]:
        """What came of it, beside a run that nobody kills."""
        last = max(self.digests, default=0)
        train(str(self.where / "whole"), 1, os.open(os.devnull, os.O_WRONLY), last)
        whole = Checkpointer(self.where / "whole").read(last).log
        same = [entry["digest"] for entry in whole] == [
            self.digests[e] for e in sorted(self.digests)
        ]
        counted = {"lost": 0, "torn": 0, "another run": 0, "hangs": 0} | self.told
        return {**counted, "epochs": last, "as if never killed": same, "problems": self.problems}


def warm_up(where: Path) -> None:
    """Load once what is loaded at first use; no backward pass, whose threads are not forked."""
    model = Net()
    optimizer = torch.optim.AdamW(model.trained.parameters())
    for parameter in model.trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for _ in range(2):
        checkpointer = Checkpointer(where / "warm", blocking=True)
        checkpointer.start(model, optimizer)
        checkpointer.checkpoint(1, model=model, optimizer=optimizer)
        checkpointer.prune(keep_last=1)


def main() -> None:
    where, seed, kills, ranks = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    logging.getLogger("ray_imuckpt").setLevel(logging.ERROR)
    where.mkdir(parents=True, exist_ok=True)
    warm_up(where)
    campaign = Campaign(where, seed, ranks, sharded="sharded" in sys.argv)
    for number in range(1, kills + 1):
        campaign.attempt(number)
        campaign.look()
        with contextlib.suppress(FileNotFoundError):
            (where / f"store-{number}").unlink()
    print(json.dumps(campaign.result()))


if __name__ == "__main__":
    main()
