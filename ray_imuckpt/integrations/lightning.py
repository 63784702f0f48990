"""Lightning: a callback that saves a ``Trainer``'s run and resumes it as the same one."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from ray_imuckpt import arguments
from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.integrations import versions
from ray_imuckpt.integrations.lightning_training import LightningTraining

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
except ModuleNotFoundError as missing:  # the same under its other name
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
        from pytorch_lightning.callbacks import (  # type: ignore[assignment]
            BatchSizeFinder,
            LearningRateFinder,
        )
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Lightning is not installed. Install it: pip install 'ray-imuckpt[lightning]'"
        ) from missing

__all__ = ["ImuckptCallback"]

TRIED = ("2.6",)


class ImuckptCallback(pl.Callback):
    """Saves the run of a Lightning ``Trainer``, and resumes it bit for bit when it is fitted again.

    ``Trainer(callbacks=[ImuckptCallback("runs/a")]).fit(module, loader)`` is all there is to do, in
    one process, with ``DDPStrategy`` or ``ModelParallelStrategy``, and in a worker of Ray Train
    with ``ray.train.lightning.RayDDPStrategy``. ``fit`` goes on from the last checkpoint there is.

    Saved are the module, all optimizers and schedulers, the loops, the states of callbacks, of the
    precision plugin, of the data module and of torchmetrics, what ``on_save_checkpoint`` adds, the
    random generators of every rank, and the place in the loaders.

    Args:
        checkpointer: A `Checkpointer`, or its `dir`; ``None`` in a worker of Ray: the run's own.
        every_n_train_steps: Save when the number of optimizer steps has come to a multiple of this,
            between two batches too, under that number instead of the epoch's. Left out: at the end
            of each epoch, as the Checkpointer's ``save_every`` says. The end of ``fit`` is saved
            either way.
        untried_version: Whether to go on with a version of Lightning that this was not tried with.

    Attributes:
        checkpointer: The `Checkpointer`.
        resumed_from: The epoch (or step) that ``fit`` has continued from; ``None`` from scratch.
        log: A row for each checkpoint: ``epoch``, ``step``, and the metrics; kept in it.

    Raises:
        ImuckptError: This version of Lightning was not tried.
        ValueError, TypeError: `every_n_train_steps` is no positive int, or is given beside
            ``save_every``.
    """

    def __init__(
        self,
        checkpointer: Checkpointer | str | os.PathLike[str] | None = None,
        *,
        every_n_train_steps: int | None = None,
        untried_version: bool = False,
    ) -> None:
        installed = metadata.version(pl.__name__.partition(".")[0])
        versions.check("Lightning", installed, TRIED, untried_version=untried_version)
        super().__init__()
        if not isinstance(checkpointer, Checkpointer):
            checkpointer = Checkpointer(checkpointer)
        self.checkpointer = checkpointer
        self.every_n_train_steps = every_n_train_steps
        if every_n_train_steps is not None:
            if arguments.epoch(every_n_train_steps, "every_n_train_steps") == 0:
                raise ValueError("every_n_train_steps=0: use 1 or more, or leave it out.")
            if self.checkpointer.saving.save_every is not None:
                raise ValueError(
                    "every_n_train_steps counts steps, and save_every of the Checkpointer would "
                    "count them as epochs: give one of them."
                )
        self.resumed_from: int | None = None
        self.log: list[dict[str, Any]] = []
        self._training: LightningTraining | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Come before all callbacks but those that try settings out: they find what is restored.

        Raises:
            ValueError: There are two of these callbacks.
        """
        if stage != "fit":
            return
        running: Any = trainer  # it gets its callbacks from a connector: no type knows of them
        others = [each for each in running.callbacks if each is not self]
        if any(isinstance(each, ImuckptCallback) for each in others):
            raise ValueError("There are two ImuckptCallbacks; one run is saved once.")
        trying = [
            each for each in others if isinstance(each, (BatchSizeFinder, LearningRateFinder))
        ]
        running.callbacks = [*trying, self, *(each for each in others if each not in trying)]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue from a checkpoint, or begin.

        Raises:
            StateMismatchError: It is of another module, or of other optimizers, or of no Lightning
                ``Trainer``; nothing was changed.
            ImuckptError: The strategy keeps the state where no name leads to it.
            ValueError: ``fit`` was given a ``ckpt_path`` as well.
        """
        self._training = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # a try of the code: nothing is kept
            return
        self._training = LightningTraining(
            self.checkpointer, trainer, pl_module, self.every_n_train_steps
        )
        self.resumed_from = self._training.start()
        self.log = self._training.log

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the loops go on where they were."""
        if self._training is not None:
            self._training.enter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is behind the end of the epoch before."""
        if self._training is not None:
            self._training.begin_epoch()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note whether to save before the next batch."""
        if self._training is not None:
            self._training.end_batch()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete what was logged in this epoch."""
        if self._training is not None:
            self._training.add_logged()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the run, and wait until all is durable."""
        if self._training is not None:
            self._training.end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the save that is under way come to its end."""
        if self._training is not None:
            self.checkpointer.__exit__(type(exception), exception, None)
