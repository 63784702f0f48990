"""What transformers' trainer says where it is used wrongly, or told to do nothing.

Each case is a function of this module; `try_all` writes what it tells to told.json under its name.
support.runs.transformers_run calls it, which has imported transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.transformers import ImuckptTrainer, ImuckptTrainerMixin
from support.runs.refusals import refused

DATA = [{"x": torch.full((4,), float(i)), "labels": torch.tensor(1.0)} for i in range(8)]


class Small(nn.Module):
    """A linear layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(x)[:, 0] - labels).square().mean()}


def arguments(at: Path, **options: Any) -> dict[str, Any]:
    """Return arguments of a short run."""
    short = {
        "output_dir": str(at / "output"), "max_steps": 2, "per_device_train_batch_size": 2,
        "save_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "remove_unused_columns": False,
    }  # fmt: skip
    return {**short, **options}


def trainer(at: Path, model: Any = None, checkpointer: Any = None, **options: Any) -> Any:
    """Return a trainer of a short run."""
    args = TrainingArguments(**arguments(at, **options))
    checkpointer = checkpointer or Checkpointer(at)
    return ImuckptTrainer(model or Small(), args, train_dataset=DATA, checkpointer=checkpointer)


def another_model(at: Path) -> Any:
    trainer(at).train()
    model = Small(width=5)
    return refused(trainer(at, model, max_steps=4).train, model)


def another_framework(at: Path) -> Any:
    model = Small()
    optimizer = trainer(at, model).create_optimizer()
    with Checkpointer(at) as checkpointer:
        checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    return refused(trainer(at, model).train, model)


def a_directory_of_theirs(at: Path) -> Any:
    return refused(lambda: trainer(at).train(resume_from_checkpoint=str(at)))


def save_total_limit(at: Path) -> Any:
    return refused(trainer(at, save_total_limit=2).train)


def save_every(at: Path) -> Any:
    return refused(trainer(at, checkpointer=Checkpointer(at, save_every=2)).train)


def ignore_data_skip(at: Path) -> Any:
    return refused(trainer(at, ignore_data_skip=True).train)


def nothing_left(at: Path) -> Any:
    """A run at its end trains nothing more, also where that is in mid-epoch; longer, it goes on."""
    trainer(at).train()
    model = Small()
    again = trainer(at, model)
    again.train()
    longer = trainer(at, max_steps=4)
    longer.train()
    indices = longer.checkpointer.list_existing_checkpoint_indices()
    return [again.resumed_from, again.state.global_step, longer.resumed_from, indices]


def without_training(at: Path) -> Any:
    """A trainer that only evaluates or saves a model asks for no checkpoint."""
    model = Small()
    trainer(at, model).save_model(str(at / "model"))
    return [Checkpointer(at).list_existing_checkpoint_indices(), (at / "model").exists()]


def mixed_in(at: Path) -> Any:
    """Another trainer of the library is resumed by the mixin."""

    class Mine(ImuckptTrainerMixin, Seq2SeqTrainer):
        pass

    resumed = []
    for steps in (2, 4):
        args = Seq2SeqTrainingArguments(**arguments(at, max_steps=steps))
        mine: Any = Mine(Small(), args, train_dataset=DATA, checkpointer=at)
        mine.train()
        resumed.append(mine.resumed_from)
    return [issubclass(Mine, Trainer), *resumed]


CASES = (
    another_model, another_framework, a_directory_of_theirs, save_total_limit, save_every,
    ignore_data_skip, nothing_left, without_training, mixed_in,
)  # fmt: skip


def try_all(directory: Path) -> None:
    """Try all of them."""
    told = {}
    for case in CASES:
        (directory / case.__name__).mkdir()
        told[case.__name__] = case(directory / case.__name__)
    (directory / "told.json").write_text(json.dumps(told))
