"""A machine that may be taken away: save in the middle of an epoch, go on at the same batch.

python examples/preemption.py --dir runs/spot           # kill -TERM it; start it again
torchrun --nproc-per-node=2 examples/preemption.py      # the same on several ranks

What is saved in the middle of epoch 7 is named by epoch 6, the last one that was completed, so that
the resumed run begins epoch 7 again, and the loader's position says which batches it has seen.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_imuckpt import Checkpointer


class Loader:
    """Batches in an order of their own for every epoch and rank; knows where it is.

    Loaders with a ``state_dict``, as torchdata's ``StatefulDataLoader``, are used the same way.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, batch: int, seed: int) -> None:
        self.x, self.y, self.batch, self.seed = x, y, batch, seed
        self.epoch, self.position = 1, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there."""
        self.epoch, self.position = state["epoch"], state["position"]

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rest of an epoch."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0
        draw = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.x), generator=draw).split(self.batch)
        while self.position < len(order):
            chosen = order[self.position]
            self.position += 1
            yield self.x[chosen], self.y[chosen]


def main() -> None:
    """Train until the last epoch, or until told to go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="runs/spot")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="four epochs, told to go in the 3rd")
    options = parser.parse_args()
    if options.smoke:
        options.epochs = 4
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if ranks > 1:
        dist.init_process_group("gloo")

    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 512).unsqueeze(1)
    loader = Loader(x, torch.sin(3 * x), 32, seed=rank)
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
    model: nn.Module = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpointer = Checkpointer(options.dir)
    started = checkpointer.start(model, optimizer, per_rank={"loader": loader})
    log, told_to_go = started.log, False
    print(f"epoch {started.start_epoch}, batch {loader.position + 1}: here it begins")
    for epoch in range(started.start_epoch, options.epochs + 1):
        for inputs, targets in loader.batches(epoch):
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.append([epoch, loss.item()])
            if options.smoke and (epoch, loader.position) == (3, 5) and started.start_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)  # as the machine's owner would
            if checkpointer.preempted():
                told_to_go = True
                break
        ended = epoch - 1 if told_to_go else epoch
        checkpointer.checkpoint(
            ended, model=model, optimizer=optimizer, log=log, per_rank={"loader": loader},
            metrics={"loss": log[-1][1]}, force=told_to_go,
        )  # fmt: skip
        if told_to_go:
            print(f"told to go in epoch {epoch} behind batch {loader.position}: saved")
            break
    checkpointer.wait()
    if not told_to_go:
        print(f"{len(log)} batches trained, last loss {log[-1][1]:.6f}")


if __name__ == "__main__":
    main()
