"""One ``train`` of a transformers ``Trainer``: when it is saved, and how it is taken up again.

transformers restores from files of its own, at several moments; it counts batches, and draws random
numbers again for those that its loader has fetched ahead; the loss since the last log is lost. So a
save that is asked for is made where nothing is under way: before the next optimizer step's batches
are fetched, or before an epoch begins. A restart comes back to that line. What is private here,
and what fails when it is gone or means something else, is in docs/versions.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.integrations import refusals, versions
from ray_imuckpt.integrations.deals import Deal, passed_over
from ray_imuckpt.integrations.transformers_state import EpochBatches, RankProgress, TrainerProgress

_NAME = "transformers"
_COUNTERS = ("_globalstep_last_logged", "_total_loss_scalar", "_tr_loss")
_TIMINGS = ("_runtime", "_per_second")


class TransformersTraining:
    """One ``train``; its methods are called by the trainer while it trains.

    Args:
        trainer: The trainer.
        checkpointer: Saves and restores.
        exportable: The class of the callbacks that have a state, ``ExportableState``.

    Attributes:
        due: Whether a save is asked for.
    """

    def __init__(self, trainer: Any, checkpointer: Checkpointer, exportable: type) -> None:
        self.due = False
        self._trainer = trainer
        self._checkpointer = checkpointer
        self._progress = TrainerProgress(trainer, exportable)
        self._rank = RankProgress(trainer)
        self._batches: Any = None  # `EpochBatches`, once an epoch was entered
        self._log: list[dict[str, Any]] = []
        self._resuming = False
        self._counting = False
        self._epoch = 0

    def refuse(self, resume_from_checkpoint: Any, trial: Any) -> None:
        """Raise for what is of transformers' own checkpoints, which are not made.

        Raises:
            ValueError: An option is about them.
            ImuckptError: DeepSpeed keeps the state itself.
        """
        args, saving = self._trainer.args, self._checkpointer.saving
        if self._trainer.is_deepspeed_enabled:
            raise ImuckptError(
                "DeepSpeed keeps parameters and optimizer where no name leads to them.",
                hint="Use DDP, or FSDP2 (fsdp_version: 2).",
            )
        for refused, name, instead in (
            (
                isinstance(resume_from_checkpoint, (str, os.PathLike)),
                "train(resume_from_checkpoint=a directory)",
                "what to continue from says Checkpointer(dir, continue_from=...)",
            ),
            (trial is not None, "hyperparameter_search()", "let Ray Tune start trainers"),
            (args.save_total_limit, "save_total_limit", "pass Checkpointer(retention=...)"),
            (args.save_only_model, "save_only_model", "a run is saved whole"),
            (args.ignore_data_skip, "ignore_data_skip", "a run goes on with its next batch"),
            (args.auto_find_batch_size, "auto_find_batch_size", "set a batch size"),
            (
                args.push_to_hub and args.hub_strategy != "end",
                f"hub_strategy={args.hub_strategy!s}",
                "push at the end",
            ),
            (saving.save_every, "Checkpointer(save_every=...)", "set save_strategy, save_steps"),
        ):
            if refused:
                raise ValueError(f"{name} does not go with ImuckptTrainer: {instead}.")

    def start(self) -> int | None:
        """Continue from a checkpoint, or begin; a collective.

        Model, optimizer and scheduler are ready for training; the loop has not begun to count.

        Returns:
            The step continued from; ``None`` from scratch.
        """
        trainer = self._trainer
        try:
            started = self._checkpointer.start(
                trainer.model_wrapped,
                trainer.optimizer,
                per_rank={_NAME: self._rank},
                **self._objects(),
            )
        except StateMismatchError as error:
            if _NAME not in error.missing:
                raise
            adapter, call = "ImuckptTrainer", "train()"
            raise refusals.made_otherwise(error, adapter, _NAME, call) from error
        if self._progress.loaded is None:
            return None
        self._resuming = self._counting = True
        self._log = started.log
        self._progress.resume(self._log)
        return started.start_epoch - 1

    def first_epoch(self, epochs: int) -> int:
        """Return the epoch to begin with, from 0; all are over where training had ended."""
        ended = self._resuming and (self._progress.over or self._progress.loaded["stopped"])
        return epochs if ended else self._progress.epoch

    def begin_epoch(self) -> None:
        """Save what is behind the end of the epoch before; or stand there again."""
        if self._resuming and self._progress.trained == 0:
            self._go_on()
        self._save_if_due(between_epochs=True)

    def enter_epoch(self, epoch: int, loader: Any, length: int) -> dict[str, Any]:
        """Note where an epoch of so many batches begins; return what its loop is to be told.

        Where it begins in its middle, the loop counts from there. It makes itself a loader that
        passes over batches, of which none is asked for: `between` has its own.
        """
        trainer, self._epoch = self._trainer, epoch
        versions.check_names(_NAME, "Trainer", trainer, _COUNTERS)
        if self._counting:  # these were set to nothing when the loop began
            self._counting = False
            if self._rank.loss is not None:
                trainer._tr_loss = self._rank.loss.to(trainer._tr_loss).clone()
                trainer._total_loss_scalar = -trainer._tr_loss.item()  # of before
                trainer._globalstep_last_logged = self._rank.last_logged
        self._batches = EpochBatches(loader)
        self._progress.deal = now = Deal.of([loader], trainer.accelerator.num_processes)
        if not self._resuming:
            return {}
        self._find(now, length)
        inner: Any = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
        for each in (loader, inner):
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)
        trained = self._progress.trained
        return {
            "resume_from_checkpoint": self._checkpointer.dir or ".",
            "epochs_trained": epoch,
            "steps_trained_in_current_epoch": trained,
        }

    def _find(self, now: Deal, length: int) -> None:
        """Go on behind what was trained on, where another gang begins in mid-epoch."""
        progress, trainer = self._progress, self._trainer
        if progress.trained == 0:
            return
        passed = passed_over(
            progress.loaded["deal"],
            now,
            progress.trained,
            multiple=trainer.args.gradient_accumulation_steps,
            length=length,
            tells=trainer.is_world_process_zero(),
        )
        if passed is not None:
            progress.trained, self._rank.position = passed, None

    def between(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Return the batches of this epoch; between two optimizer steps, where the run is saved."""
        batches: EpochBatches = self._batches
        if self._resuming:
            batches.resume(self._rank.position, self._progress.trained)
            self._go_on()
        batches.draw_from(iterator)
        self._save_if_due(between_epochs=False)
        return batches

    def end(self) -> None:
        """Save the end of the run, if that is asked for."""
        state = self._trainer.state
        whole = self._batches is None or state.epoch is None or float(state.epoch).is_integer()
        self._save_if_due(between_epochs=whole)
        self._checkpointer.wait()

    def load_best(self) -> None:
        """Load the weights of the best checkpoint into the model."""
        self._checkpointer.load(self._trainer.model, self._trainer.state.best_global_step)

    def _go_on(self) -> None:
        self._resuming = False
        self._progress.resume(self._log)
        self._checkpointer.restore_random_state()

    def _save_if_due(self, *, between_epochs: bool) -> None:
        if not self.due:
            return
        self.due = False
        trainer, state, progress = self._trainer, self._trainer.state, self._progress
        self._rank.batches = None if between_epochs else self._batches
        progress.epoch = self._epoch + between_epochs
        taken = 0 if self._batches is None else self._batches.taken
        progress.trained = 0 if between_epochs else taken
        if state.best_global_step == state.global_step:
            best = self._checkpointer.path_to_checkpoint(state.global_step)
            state.best_model_checkpoint = best
        rows = [row for row in state.log_history if row["step"] == state.global_step]
        logged = {name: value for row in rows for name, value in row.items() if name != "step"}
        self._checkpointer.checkpoint(
            state.global_step,
            model=trainer.model_wrapped,
            optimizer=trainer.optimizer,
            log=state.log_history,
            metrics={n: v for n, v in logged.items() if not n.endswith(_TIMINGS)},
            step=state.global_step,
            force=True,
            per_rank={_NAME: self._rank},
            **self._objects(),
        )

    def _objects(self) -> dict[str, Any]:
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        kept = {} if scaler is None else {"scaler": scaler}
        return {**kept, "scheduler": self._trainer.lr_scheduler, _NAME: self._progress}
