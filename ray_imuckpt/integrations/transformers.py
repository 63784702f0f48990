"""transformers: a ``Trainer`` that saves its run and resumes it as the same one."""

from __future__ import annotations

import inspect
import os
from importlib import metadata
from typing import Any

from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.integrations import versions
from ray_imuckpt.integrations.transformers_training import TransformersTraining

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "transformers is not installed. Install it: pip install 'ray-imuckpt[transformers]'"
    ) from missing

__all__ = ["ImuckptTrainer", "ImuckptTrainerMixin"]

TRIED = ("5.22", "5.23", "5.24")
_EPOCH = (
    *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch"),
    *("trial", "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
    "steps_trained_in_current_epoch",
)
_OVERRIDDEN = {  # what is called by a Trainer under a private name: with which parameters
    "_init_training_state": (
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs"),
        *("resume_from_checkpoint", "trial"),
    ),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_run_epoch": _EPOCH,
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "_load_rng_state": ("checkpoint",),
    "_save_checkpoint": ("model", "trial"),
    "_load_best_model": (),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
}


class ImuckptTrainerMixin:
    """Lets a transformers ``Trainer`` save its run, and resume it bit for bit.

    For a trainer of your own or of another library, ``class Mine(ImuckptTrainerMixin, SFTTrainer)``
    for example: it comes before the trainer's class. What is saved, and when, is as for
    `ImuckptTrainer`.

    Its arguments are those of the trainer's class; `checkpointer`, `untried_version` and the
    attributes are as for `ImuckptTrainer`.

    Raises:
        ImuckptError: This version of transformers was not tried, or its ``Trainer`` lacks a method
            that is overridden here, or calls it with other parameters.
        TypeError: `checkpointer` is no `Checkpointer`, path or URL.
    """

    def __init__(
        self,
        *args: Any,
        checkpointer: Checkpointer | str | os.PathLike[str] | None = None,
        untried_version: bool = False,
        **kwargs: Any,
    ) -> None:
        installed = metadata.version("transformers")
        versions.check("transformers", installed, TRIED, untried_version=untried_version)
        versions.check_names("transformers", "Trainer", Trainer, (*_OVERRIDDEN, "store_flos"))
        for name, parameters in _OVERRIDDEN.items():
            here = inspect.signature(getattr(Trainer, name)).parameters
            versions.check_parameters("transformers", f"Trainer.{name}", here, parameters)
        super().__init__(*args, **kwargs)
        if not isinstance(checkpointer, Checkpointer):
            checkpointer = Checkpointer(checkpointer)
        self.checkpointer = checkpointer
        self.resumed_from: int | None = None
        self._training = TransformersTraining(self, checkpointer, ExportableState)
        handler: Any = self.callback_handler  # type: ignore[attr-defined]
        handler.callbacks.insert(0, _First(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 - as in Trainer
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the checkpoint that the Checkpointer's ``continue_from`` means.

        Args:
            resume_from_checkpoint: Nothing, or ``True``, which is the same.
            trial: Nothing.
            ignore_keys_for_eval: As for ``Trainer.train``.

        Returns:
            The ``TrainOutput``. Its ``global_step`` counts optimizer steps from the run's
            beginning, ``training_loss`` is the mean loss of the steps of this call.

        Raises:
            StateMismatchError: The checkpoint is of another model or optimizer, or of no
                `ImuckptTrainer`; nothing was changed.
            ValueError: An option of the ``TrainingArguments`` is about transformers' own
                checkpoints, or `resume_from_checkpoint` is a directory of them.
            UnsupportedStateError: The model is sharded by FSDP1.
            SaveFailedError: A checkpoint could not be made; on every rank.
            ImuckptError: The trainer is run by DeepSpeed, which keeps the state itself.
        """
        self._training = TransformersTraining(self, self.checkpointer, ExportableState)
        self._training.refuse(resume_from_checkpoint, trial)
        with self.checkpointer:
            return super().train(None, None, ignore_keys_for_eval)  # type: ignore[misc]

    # What follows is called by transformers, whose names these are: see `TransformersTraining`.

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, *_: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, steps, epochs, None, None)  # type: ignore[misc]
        prepare = super()._prepare_for_training  # type: ignore[misc]
        self._prepared = prepare(max_steps, None, None)[0]
        self.resumed_from = self._training.start()
        return self._training.first_epoch(epochs), 0

    def _prepare_for_training(self, _: int, train_dataloader: Any, *__: Any) -> tuple[Any, Any]:
        handler: Any = self.callback_handler  # type: ignore[attr-defined]
        handler.train_dataloader = train_dataloader
        return self._prepared, train_dataloader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        epoch, loader = kwargs["epoch"], kwargs["train_dataloader"]
        kwargs |= self._training.enter_epoch(epoch, loader, kwargs["steps_in_epoch"])
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the batches of the next optimizer step; between two steps the run is saved.

        Args:
            epoch_iterator: What the batches come from.
            num_batches: How many micro-batches the step is made of.
            device: As for ``Trainer.get_batch_samples``.

        Returns:
            The micro-batches, at most `num_batches`, and the number of items in them or ``None``.
        """
        batches = self._training.between(epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)  # type: ignore[misc]

    def _load_rng_state(self, _: Any) -> None:
        """Do nothing: the generators were put back before the first batch was fetched."""

    def _save_checkpoint(self, *_: Any) -> None:
        self._training.due = True
        self.store_flos()  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        self._training.load_best()

    def _finalize_training(self, *args: Any) -> Any:
        self._training.end()
        return super()._finalize_training(*args)  # type: ignore[misc]


class ImuckptTrainer(ImuckptTrainerMixin, Trainer):
    """A transformers ``Trainer`` whose run is saved, and resumed bit for bit by ``train()``.

    It saves when ``TrainingArguments(save_strategy=, save_steps=)`` say so, in the middle of an
    epoch too, under the number of the optimizer step; not into ``output_dir``, but where the
    Checkpointer says. ``load_best_model_at_end`` loads the best of these.

    Saved are the model, optimizer, scheduler and scaler, the ``TrainerState`` with its log, the
    callbacks that are ``ExportableState``, the random generators of every rank, and the position
    in the batches.

    Args:
        *args: As for ``Trainer``.
        checkpointer: A `Checkpointer`, or its `dir`; ``None`` in a worker of Ray: the run's own.
        untried_version: Whether to go on with a version of transformers that this was not tried
            with.
        **kwargs: As for ``Trainer``.

    Attributes:
        checkpointer: The `Checkpointer`.
        resumed_from: The number of optimizer steps that ``train`` has continued from; ``None`` from
            scratch.

    Raises:
        ImuckptError, TypeError: As for `ImuckptTrainerMixin`.
    """


class _First(TrainerCallback):
    """The first of all callbacks: what it saves holds nothing of an epoch that begins."""

    def __init__(self, trainer: ImuckptTrainerMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Save what is behind the end of the epoch before, or go on from it."""
        self._trainer._training.begin_epoch()  # noqa: SLF001 - of this module
