"""A training function for Ray Train in which Lightning owns the loop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import ray.train.lightning
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.lightning import ImuckptCallback


class Net(pl.LightningModule):
    """Linear, batch norm, dropout, linear; rank 1 may die, once."""

    def __init__(self, dies: Path | None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.dies, self.calls = dies, 0

    def training_step(self, batch: Any, _: int) -> Any:
        self.calls += 1
        if self.dies and self.calls == 8 and self.global_rank == 1 and not self.dies.exists():
            self.dies.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (self.net(batch[0])[:, 0] - batch[1]).square().mean()
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loop(config: dict[str, Any]) -> None:
    """Fit on this rank, saving between batches."""
    pl.seed_everything(0, verbose=False)
    x = torch.linspace(-1, 1, 24 * 6).reshape(24, 6)
    loader = DataLoader(TensorDataset(x, x.sum(1)), 3, shuffle=True)
    callback = ImuckptCallback(config["checkpointer"], every_n_train_steps=3)
    trainer = pl.Trainer(
        max_epochs=3, callbacks=[callback], accelerator="cpu", devices="auto", logger=False,
        strategy=ray.train.lightning.RayDDPStrategy(),
        plugins=[ray.train.lightning.RayLightningEnvironment()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    ray.train.lightning.prepare_trainer(trainer).fit(Net(config["dies"]), loader)
    if trainer.is_global_zero:
        Path(config["note"]).write_text(str(callback.resumed_from))


def fit(checkpointer: Checkpointer, note: Path, dies: Path | None, run_config: RunConfig) -> Any:
    """Run it on two workers."""
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "note": note, "dies": dies},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=run_config,
    ).fit()
