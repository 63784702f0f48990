"""What Lightning and its callback say where they are used wrongly, or told to do nothing.

Each case is a function of this module; `try_all` writes what it tells to told.json under its name.
support.runs.lightning_run calls it, which has imported Lightning.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ray_imuckpt import Checkpointer
from ray_imuckpt.integrations.lightning import ImuckptCallback
from support.logs import Messages
from support.runs.refusals import refused

LOADER = DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8)), 4)
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


class Small(pl.LightningModule):
    """A linear layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Linear(width, 1)

    def training_step(self, batch: Any, _: int) -> Any:
        loss = (self.net(batch[0])[:, 0] - batch[1]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Several(Small):
    """The same, with a second optimizer of the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [super().configure_optimizers(), torch.optim.SGD([self.net.bias], 0.01)]


class Unoptimized(Small):
    """Counts, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, *_: Any) -> Any:
        self.steps += 1

    def configure_optimizers(self) -> Any:
        return None


class OfIterator(Small):
    """Takes its batches itself."""

    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batch, _, _ = next(dataloader_iter)
        return self.net(batch[0]).square().mean()


def fit(module: Any, directory: Path | None, epochs: int = 1, **options: Any) -> ImuckptCallback:
    """Fit once; return the callback."""
    callback = options.pop("callback", None) or ImuckptCallback(directory)
    more = options.pop("callbacks", [])
    ckpt_path = options.pop("ckpt_path", None)
    given = {**QUIET, "max_epochs": epochs, "callbacks": [*more, callback], **options}
    pl.Trainer(**given).fit(module, LOADER, ckpt_path=ckpt_path)
    return callback


def another_module(at: Path) -> Any:
    fit(Small(), at)
    module = Small(width=5)
    return refused(lambda: fit(module, at, 2), module)


def fewer_optimizers(at: Path) -> Any:
    fit(Several(), at)
    module = Small()
    return refused(lambda: fit(module, at, 2), module)


def more_optimizers(at: Path) -> Any:
    fit(Small(), at)
    module = Several()
    return refused(lambda: fit(module, at, 2), module)


def another_framework(at: Path) -> Any:
    module = Small()
    with Checkpointer(at) as checkpointer:
        checkpointer.checkpoint(1, model=module, optimizer=module.configure_optimizers())
    return refused(lambda: fit(module, at, 2), module)


def beside_ckpt_path(at: Path) -> Any:
    trainer = pl.Trainer(**QUIET, max_epochs=1)
    trainer.fit(Small(), LOADER)
    trainer.save_checkpoint(at / "a.ckpt")
    return refused(lambda: fit(Small(), at, 2, ckpt_path=at / "a.ckpt"))


def two_callbacks(at: Path) -> Any:
    return refused(lambda: fit(Small(), at, callbacks=[ImuckptCallback(at)]))


def steps_beside_save_every(at: Path) -> Any:
    checkpointer = Checkpointer(at, save_every=5)
    return refused(lambda: ImuckptCallback(checkpointer, every_n_train_steps=5))


def no_steps(at: Path) -> Any:
    return refused(lambda: ImuckptCallback(at, every_n_train_steps=0))


def fewer_than_no_steps(at: Path) -> Any:
    return refused(lambda: ImuckptCallback(at, every_n_train_steps=-1))


def no_directory(at: Path) -> Any:
    return refused(lambda: ImuckptCallback(5))  # type: ignore[arg-type]


def exchanged_schedulers(at: Path) -> Any:
    """A callback after which nothing can be resumed is told of before it begins."""
    with Messages() as told:
        fit(Small(), at, callbacks=[StochasticWeightAveraging(0.1)])
    return told


def batches_of_the_user(at: Path) -> Any:
    callback = ImuckptCallback(at, every_n_train_steps=1)
    return refused(lambda: fit(OfIterator(), at, callback=callback))


def fast_dev_run(at: Path) -> Any:
    fit(Small(), at, fast_dev_run=True)
    return Checkpointer(at).list_existing_checkpoint_indices()


def nothing_left(at: Path) -> Any:
    """A run that has come to its end trains nothing and saves nothing when it is fitted again."""
    fit(Small(), at, 2)
    before = sorted(path.name for path in at.rglob("*"))
    module = Small()
    callback = fit(module, at, 2)
    return [callback.resumed_from, before == sorted(path.name for path in at.rglob("*"))]


def no_optimizer(at: Path) -> Any:
    """A module that configures no optimizer is resumed as well, for what it counts."""
    resumed = []
    for epochs in (1, 2):
        module = Unoptimized()
        resumed.append(fit(module, at, epochs).resumed_from)
    return [*resumed, module.steps.item()]


def stopped_early(at: Path) -> Any:
    """A run that was stopped stays stopped."""

    def stop() -> EarlyStopping:
        return EarlyStopping("loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)

    fit(Small(), at, 9, callbacks=[stop()])
    stopped = Checkpointer(at).list_existing_checkpoint_indices()
    callback = fit(Small(), at, 9, callbacks=[stop()])
    return [stopped, callback.resumed_from, Checkpointer(at).list_existing_checkpoint_indices()]


def callback_gone(at: Path) -> Any:
    fit(Small(), at, callbacks=[EarlyStopping("loss")])
    with Messages() as told:
        fit(Small(), at, 2)
    return told


def other_name(at: Path) -> Any:
    """The package has two names: this callback serves a Trainer of either."""

    class Plain(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    resumed = []
    for epochs in (1, 2):
        callback: Any = ImuckptCallback(at)
        trainer = pytorch_lightning.Trainer(**QUIET, max_epochs=epochs, callbacks=[callback])
        trainer.fit(Plain(), LOADER)
        resumed.append(callback.resumed_from)
    return resumed


def epochs_after_steps(at: Path) -> dict[str, Any]:
    """Saved by steps, and then by epochs, whose numbers are lower."""
    fit(Small(), at, callback=ImuckptCallback(at, every_n_train_steps=1))
    module = Small()
    return refused(lambda: fit(module, at, 2), module)


CASES = (
    another_module, fewer_optimizers, more_optimizers, another_framework, beside_ckpt_path,
    two_callbacks, steps_beside_save_every, no_steps, fewer_than_no_steps, no_directory,
    exchanged_schedulers, batches_of_the_user, fast_dev_run,
    nothing_left, no_optimizer, stopped_early, callback_gone, other_name, epochs_after_steps,
)  # fmt: skip


def try_all(directory: Path) -> None:
    """Try all of them."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    told = {}
    for case in CASES:
        (directory / case.__name__).mkdir()
        told[case.__name__] = case(directory / case.__name__)
    (directory / "told.json").write_text(json.dumps(told))
