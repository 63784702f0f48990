"""Runs of Lightning that use much of it; test_lightning.py starts them.

    python -m support.runs.lightning_run DIRECTORY RUNS

RUNS is a list of runs, each a kind, a number of ranks and a list of kills, one entry an attempt: at
which batch it ends by SIGKILL; one more attempt comes to the end. The ranks of each attempt are
forked from this process, which has imported Lightning. At its end each rank writes all that
training has made.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanSquaredError

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.lightning import ImuckptCallback
from support.logs import Messages
from support.runs import frameworks, lightning_misuse
from support.runs.same_run import digest

X = torch.linspace(-1, 1, 36 * 6).reshape(36, 6)


class Noisy(Dataset[Any]):
    """Items that draw from every generator when they are read."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        jitter = random.random() + np.random.rand() + torch.rand(1).item()
        return X[index] + 0.01 * jitter, X[index].sum()


class Stream(IterableDataset[Any]):
    """The same without a length, in an order that is drawn."""

    def __iter__(self) -> Iterator[Any]:
        items = Noisy()
        for index in torch.randperm(len(X)).tolist():
            yield items[index]


class Count(pl.Callback):
    """A callback with a state, and with hooks that draw."""

    def __init__(self) -> None:
        self.batches = self.last = 0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epoch_noise = random.random()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches += 1
        self.last += trainer.is_last_batch

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self.last = state_dict["batches"], state_dict["last"]


class Net(pl.LightningModule):
    """Linear, batch norm, dropout, linear; one optimizer, a plateau scheduler, a metric."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1)
        )
        self.error = MeanSquaredError()
        self.note = 0
        self.die = die
        self.samples: Callable[[Any], None] | None = None

    def loss(self, batch: Any) -> Any:
        self.die()
        x, y = batch
        if self.samples is not None:
            self.samples(y)
        made = self.net(x)[:, 0]
        self.error.update(made.detach().float(), y)
        return (made - y).square().mean()

    def training_step(self, batch: Any, _: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.note += 1
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("error", self.error.compute())
        self.error.reset()

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        self.log("val", (self.net(x)[:, 0] - y).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        warm = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return [optimizer], [
            {"scheduler": plateau, "monitor": "val", "interval": "epoch"},
            {"scheduler": warm, "interval": "step"},
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = self.note

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.note = checkpoint["note"]


class Two(Net):
    """Two optimizers, each with a scheduler, stepped by hand."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__(die)
        self.automatic_optimization = False
        self.other = nn.Linear(6, 1)

    def training_step(self, batch: Any, _: int) -> Any:
        optimizers: Any = self.optimizers()
        first, second = optimizers
        schedulers: Any = self.lr_schedulers()
        loss = self.loss(batch) + (self.other(batch[0])[:, 0] - batch[1]).square().mean()
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()
        schedulers[1].step()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        schedulers: Any = self.lr_schedulers()
        schedulers[0].step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.net.parameters(), lr=1e-2, momentum=0.9)
        second = torch.optim.AdamW(self.other.parameters(), lr=1e-2)
        return [first, second], [
            torch.optim.lr_scheduler.StepLR(first, 2, 0.5),
            torch.optim.lr_scheduler.ExponentialLR(second, 0.99),
        ]


class Sharded(Net):
    """Each rank holds its shards; no batch norm, whose statistics are each rank's own."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__(die)
        self.net[1] = nn.LayerNorm(16)

    def configure_model(self) -> None:
        mesh: Any = self.device_mesh
        if mesh is None:  # another strategy
            return
        for layer in (self.net[0], self.net[3], self.net):
            fully_shard(layer, mesh=mesh["data_parallel"])


def kind(name: str, die: Callable[[], None]) -> tuple[Net, Any, dict[str, Any], int | None]:
    """Return the module, the loader, the trainer's options, and when to save."""
    options: dict[str, Any]
    if name == "epochs":
        return Net(die), DataLoader(Noisy(), 6, shuffle=True), {"max_epochs": 5}, None
    if name == "steps":
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(Noisy(), 3, shuffle=True, generator=generator)
        options = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 4}
        return Net(die), loader, options, 2
    if name == "stream":
        options = {"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 3}
        return Two(die), DataLoader(Stream(), 3), options, 6
    if name in {"averaged", "sharded"}:
        averaging = [EMAWeightAveraging(decay=0.9)] if name == "averaged" else []
        options = {"max_epochs": 3, "callbacks": averaging}
        net = Net if name == "averaged" else Sharded
        return net(die), DataLoader(Noisy(), 6, shuffle=True), options, 4
    if name in {"workers", "elastic"}:
        workers = name == "workers"
        loader = DataLoader(Noisy(), 3, shuffle=True, num_workers=2 * workers)
        options = {"max_epochs": 2, "reload_dataloaders_every_n_epochs": int(workers)}
        return (Net if workers else Sharded)(die), loader, options, 3
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    loader = StatefulDataLoader(Noisy(), 3, shuffle=True)
    return Net(die), loader, {"max_steps": 30, "plugins": [plugin]}, 5


def fit(directory: Path, rank: int, ranks: int, name: str, die: Callable[[], None]) -> None:
    """Fit until the end, or until it is killed."""
    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(0)
    module, loader, options, every = kind(name, die)
    torch.manual_seed(rank)
    told = Messages().begin()
    count = Count()
    stop = EarlyStopping("val", patience=3, check_on_train_epoch_end=False)
    elastic = name == "elastic"
    if elastic:
        module.samples = partial(frameworks.note, directory, ranks, rank)
    checkpointer = Checkpointer(directory, blocking=elastic)
    callback = ImuckptCallback(checkpointer, every_n_train_steps=every)
    callbacks = [count, stop, callback, *options.pop("callbacks", [])]
    strategy: Any = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    if name == "sharded":
        strategy = ModelParallelStrategy(ranks, 1, process_group_backend="gloo")
    trainer = pl.Trainer(
        callbacks=callbacks, accelerator="cpu", devices=ranks, logger=False,
        strategy=strategy, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The '.*' does not have many workers")
        warnings.filterwarnings("error", "You're resuming")
        trainer.fit(module, loader, DataLoader(Noisy(), 12))
    result = {
        "resumed_from": callback.resumed_from,
        "model": digest(module.state_dict()),
        "optimizers": [digest(each.state_dict()) for each in trainer.optimizers],
        "schedulers": [digest(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
        "callbacks": digest(count.state_dict(), stop.state_dict()),
        "metrics": {n: v.item() for n, v in sorted(trainer.callback_metrics.items())},
        "updates": [module.error.update_count, module.error._update_count],
        "loops": digest(trainer.fit_loop.state_dict()),
        "at": [trainer.current_epoch, trainer.global_step, module.note, trainer.should_stop],
        "log": callback.log,
        "saved": callback.checkpointer.list_existing_checkpoint_indices(),
        "draws": [random.random(), np.random.rand(), *torch.rand(2).tolist()],
        "messages": told,
    }
    frameworks.tell(directory, rank, result)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frameworks.make(Path(sys.argv[1]), sys.argv[2], fit, lightning_misuse.try_all)
