"""A training of two ranks in which Lightning owns the loop, for `support.runs.ray_lightning`.

    python -m support.runs.lightning_gang DIRECTORY

runs it without Ray, and nobody dies.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.lightning import ImuckptCallback
from support.forking import import_all, on_gang
from support.waiting import until_committed


class Net(pl.LightningModule):
    """Linear, batch norm, dropout, linear; rank 1 may die, once.

    Before it does, a checkpoint is committed: on a slow disk the first may still be on its way.
    """

    def __init__(self, directory: str, dies: Path | None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.directory, self.dies, self.calls = directory, dies, 0

    def training_step(self, batch: Any, _: int) -> Any:
        self.calls += 1
        if self.dies and self.calls == 8 and self.global_rank == 1 and not self.dies.exists():
            until_committed(self.directory)
            self.dies.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (self.net(batch[0])[:, 0] - batch[1]).square().mean()
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(
    checkpointer: Checkpointer,
    dies: Path | None,
    prepare: Callable[[pl.Trainer], pl.Trainer],
    **ranks: Any,
) -> ImuckptCallback:
    """Fit on this rank, saving between batches.

    Args:
        checkpointer: Where it saves.
        dies: What rank 1 leaves behind when it dies, if it is to.
        prepare: What the surroundings do with a Trainer before it fits.
        ranks: The arguments by which a Trainer finds the other ranks.
    """
    pl.seed_everything(0, verbose=False)
    x = torch.linspace(-1, 1, 24 * 6).reshape(24, 6)
    loader = DataLoader(TensorDataset(x, x.sum(1)), 3, shuffle=True)
    callback = ImuckptCallback(checkpointer, every_n_train_steps=3)
    trainer = pl.Trainer(
        max_epochs=3, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **ranks,
    )  # fmt: skip
    prepare(trainer).fit(Net(str(checkpointer.dir), dies), loader)
    return callback


def _fit_whole(checkpointer: Checkpointer, rank: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    strategy = DDPStrategy(process_group_backend="gloo")
    fit(checkpointer, None, lambda trainer: trainer, strategy=strategy, devices=2)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    import_all()
    ended = on_gang(2, partial(_fit_whole, Checkpointer(sys.argv[1])))
    sys.exit(any(ended.values()))
