"""A training function for Ray Train in which transformers owns the loop, and the same without Ray.

    python -m support.runs.ray_transformers DIRECTORY

trains there on two ranks that are forked from this process: what a gang of Ray is held against.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ray_imuckpt import Checkpointer
from support.forking import import_all, on_gang

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Net(nn.Module):
    """Linear, dropout, linear; rank 1 may die in its eighth step, once."""

    def __init__(self, dies: Path | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.dies, self.calls = dies, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.dies and self.calls == 8 and dist.get_rank() == 1 and not self.dies.exists():
            self.dies.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": (self.net(x)[:, 0] - labels).square().mean()}


def prepared(config: dict[str, Any]) -> Any:
    """Return a trainer for this rank that saves in the middle of epochs."""
    from transformers import TrainingArguments

    from ray_imuckpt.integrations.transformers import ImuckptTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 24 * 6).reshape(24, 6)
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=3, per_device_train_batch_size=3,
        save_steps=3, logging_steps=2, learning_rate=1e-2, use_cpu=True, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, ddp_backend="gloo",
    )  # fmt: skip
    return ImuckptTrainer(
        Net(config["dies"]), args, checkpointer=config["checkpointer"],
        train_dataset=[{"x": row, "labels": row.sum()} for row in x],
    )  # fmt: skip


def loop(config: dict[str, Any]) -> None:
    """Train in a worker of Ray, as its documentation says."""
    import ray.train.huggingface.transformers as ray_transformers

    trainer: Any = ray_transformers.prepare_trainer(prepared(config))
    trainer.train()
    if trainer.is_world_process_zero():
        config["note"].write_text(str(trainer.resumed_from))


def alone(directory: Path, rank: int) -> None:
    """Train as a rank of a gang without Ray."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    prepared({"checkpointer": Checkpointer(directory), "dies": None}).train()


if __name__ == "__main__":
    import_all()
    assert on_gang(2, partial(alone, Path(sys.argv[1]))) == {0: 0, 1: 0}
