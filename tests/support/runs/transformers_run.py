"""Runs of transformers' Trainer that use much of it; test_transformers.py starts them.

    python -m support.runs.transformers_run DIRECTORY RUNS

RUNS is as for `support.runs.lightning_run`: a kind, a number of ranks and a list of kills, one
entry an attempt: at which forward pass of training it ends by SIGKILL. Beside each run the same one
is made that is not killed. At its end each rank writes all that training has made.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import numpy as np
import torch
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.transformers import ImuckptTrainer
from support.logs import Messages
from support.runs import frameworks, transformers_misuse
from support.runs.same_run import digest

X = torch.linspace(-1, 1, 44 * 6).reshape(44, 6)
TIMINGS = ("_runtime", "_per_second", "total_flos")


class Noisy(Dataset[Any]):
    """Items that draw from every generator when they are read."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        jitter = random.random() + np.random.rand() + torch.rand(1).item()
        return {"x": X[index] + 0.01 * jitter, "labels": X[index].sum()}


class Stream(IterableDataset[Any]):
    """The same without a length, in an order that is drawn."""

    def __iter__(self) -> Iterator[Any]:
        items = Noisy()
        for index in torch.randperm(len(X)).tolist():
            yield items[index]


class Net(nn.Module):
    """Linear, batch norm, dropout, linear."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1)
        )
        self.die = die
        self.samples: Callable[[Any], None] | None = None

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.die()
            if self.samples is not None:
                self.samples(labels)
        made = self.net(x)[:, 0]
        return {"loss": (made - labels).square().mean(), "logits": made}


class Sharded(Net):
    """Each rank holds its shards; no batch norm, whose statistics are each rank's own."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__(die)
        self.net[1] = nn.LayerNorm(16)


class Count(TrainerCallback, ExportableState):
    """A callback with a state, and with hooks that draw."""

    def __init__(self) -> None:
        self.steps = self.epochs = 0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.epochs += 1
        self.noise = random.random()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"steps": self.steps, "epochs": self.epochs}}


def kind(name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    """Return the data, the arguments and further callbacks."""
    steps = {"save_strategy": "steps", "logging_steps": 3}
    if name == "steps":
        more = {"eval_strategy": "steps", "eval_steps": 4, "num_train_epochs": 3}
        return Noisy(), {**steps, **more, "save_steps": 4, "gradient_accumulation_steps": 2}, []
    if name == "epochs":
        more = {
            "save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 6,
            "load_best_model_at_end": True, "metric_for_best_model": "loss", "logging_steps": 4,
            "greater_is_better": True,  # so that the best is an early one
        }  # fmt: skip
        return Noisy(), more, [EarlyStoppingCallback(early_stopping_patience=3)]
    if name == "elastic":
        more = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "save_steps": 3}
        return Subset(Noisy(), range(36)), {**steps, **more}, []
    if name == "sharded":
        more = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
        return Noisy(), {**steps, **more, "save_steps": 3, "max_steps": 8}, []
    if name == "workers":
        return Noisy(), {**steps, "save_steps": 4, "max_steps": 17, "dataloader_num_workers": 2}, []
    return Stream(), {**steps, "save_steps": 4, "max_steps": 25, "lr_scheduler_type": "cosine"}, []


def shard(trainer: Any) -> None:
    """Let accelerate shard by FSDP2: on CPUs it does so only where told that it had decided to."""
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    trainer.is_fsdp_enabled = True


def train(directory: Path, rank: int, ranks: int, name: str, die: Callable[[], None]) -> None:
    """Train until the end, or until it is killed."""
    torch.manual_seed(0)
    elastic = name == "elastic"
    model = Sharded(die) if name in {"sharded", "elastic"} else Net(die)
    if elastic:
        model.samples = partial(frameworks.note, directory, ranks, rank)
    data, options, callbacks = kind(name)
    count = Count()
    told = Messages().begin()
    args = TrainingArguments(
        output_dir=str(directory / "output"), learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True, seed=5, remove_unused_columns=False,
        ddp_backend="gloo" if ranks > 1 else None,
        **{"per_device_train_batch_size": 4, **options},
    )  # fmt: skip
    trainer: Any = ImuckptTrainer(
        model, args, train_dataset=data, eval_dataset=Noisy(), callbacks=[count, *callbacks],
        checkpointer=Checkpointer(directory, blocking=elastic),
    )  # fmt: skip
    if name == "sharded":
        shard(trainer)
    if name == "workers":  # as fp16 does on GPUs alone
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", 64.0, growth_interval=5)
    trainer.train()
    last = trainer.checkpointer.read()
    result = {
        "resumed_from": trainer.resumed_from,
        "model": digest(model.state_dict()),
        "optimizer": digest(trainer.optimizer.state_dict()),
        "scheduler": digest(trainer.lr_scheduler.state_dict()),
        "scaler": digest(trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict()),
        "counted": [count.steps, count.epochs],
        "log": [
            {key: value for key, value in row.items() if not key.endswith(TIMINGS)}
            for row in trainer.state.log_history
            if "train_loss" not in row  # which is of the steps of this call
        ],
        "at": [trainer.state.global_step, trainer.state.epoch, trainer.state.best_metric],
        "best": trainer.state.best_global_step,
        "saved": trainer.checkpointer.list_existing_checkpoint_indices(),
        "metrics": last.metrics,
        "draws": [random.random(), np.random.rand(), *torch.rand(2).tolist()],
        "files": sorted(path.name for path in (directory / "output").glob("*")),
        "messages": told,
    }
    frameworks.tell(directory, rank, result)


if __name__ == "__main__":
    frameworks.make(Path(sys.argv[1]), sys.argv[2], train, transformers_misuse.try_all)
