"""One ``fit`` of a Lightning ``Trainer``: when it is saved, and how it is taken up again."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.errors import ImuckptError, StateMismatchError
from ray_imuckpt.integrations import refusals
from ray_imuckpt.integrations.batches import Batches, apply_loaders
from ray_imuckpt.integrations.deals import passed_over
from ray_imuckpt.integrations.lightning_loops import TrainingLoops
from ray_imuckpt.integrations.lightning_state import RankState, TrainerState

logger = logging.getLogger("ray_imuckpt")

_NAME = "lightning"
_FIT = "fit()"
_OUT_OF_REACH = ("FSDPStrategy", "DeepSpeedStrategy")


class LightningTraining:
    """One ``fit``; its methods are called at the hooks of a callback, the first of all callbacks.

    Args:
        checkpointer: Saves and restores.
        trainer: The trainer.
        module: The ``LightningModule``.
        every: The number of optimizer steps between two saves; ``None``: saved by epochs.

    Attributes:
        log: A row for each save that was asked for.
    """

    def __init__(
        self, checkpointer: Checkpointer, trainer: Any, module: nn.Module, every: int | None
    ) -> None:
        self.log: list[dict[str, Any]] = []
        self._checkpointer = checkpointer
        self._trainer = trainer
        self._every = every
        self._loops = TrainingLoops(trainer)
        by_steps = every is not None
        self._state = TrainerState(trainer, module, self._loops, by_steps=by_steps)
        self._rank = RankState(trainer, module, self._loops)
        self._batches: Batches | None = None
        self._resuming = False
        self._due = False
        self._steps = 0
        self._saved: int | None = None

    def start(self) -> int | None:
        """Continue from a checkpoint, or begin; a collective.

        Returns:
            The index continued from; ``None`` from scratch.
        """
        self._refuse()
        optimizer, others = self._optimizers()
        try:
            started = self._checkpointer.start(
                self._trainer.model, optimizer, per_rank={_NAME: self._rank}, **others
            )
        except StateMismatchError as error:
            raise _explained(error) from error
        self.log = started.log
        if self._state.loaded is None:
            return None
        self._resuming = True
        self._saved = started.start_epoch - 1
        self._state.resume()
        self._rank.resume()
        return self._saved

    def enter(self) -> None:
        """Let the loops go on where they were; they have asked for the loaders."""
        self._steps = self._trainer.global_step
        between_epochs = self._state.between_epochs
        if self._resuming:
            self._loops.go_on(between_epochs=between_epochs)
        if self._every is None and between_epochs:
            return
        self._batches = self._loops.batches(self._between)
        if not between_epochs:
            self._find(self._batches)
        if not (self._resuming and between_epochs):  # there the loop itself will
            self._loops.begin()

    def _find(self, batches: Batches) -> None:
        """Let the batches go on behind those that were trained on."""
        state, trainer, loaded = self._state, self._trainer, self._state.loaded
        passed = passed_over(
            loaded["deal"],
            state.deal,
            state.trained,
            multiple=trainer.accumulate_grad_batches,
            length=batches.length,
            tells=trainer.is_global_zero,
        )
        if passed is None:
            batches.resume(self._rank.position, state.trained)
            return
        loaded["loops"] = self._loops.standing(loaded["loops"], passed)
        batches.resume(None, passed)

    def begin_epoch(self) -> None:
        """Save what is behind the end of the epoch before."""
        if self._resuming:
            self._resuming = False
            if self._rank.position is not None:
                apply_loaders(self._loops.loaders, self._rank.position)
            self._checkpointer.restore_random_state()
        elif self._loops.epochs > 0 and (self._every is None or self._due):
            self._save(between_epochs=True)
        if self._batches is not None and not self._loops.uses(self._batches):
            self._batches = self._loops.batches(self._between)

    def end_batch(self) -> None:
        """Note whether to save before the next batch."""
        steps, every = self._trainer.global_step, self._every
        if every is not None and steps // every > self._steps // every:
            self._due = True
        self._steps = steps

    def add_logged(self) -> None:
        """Complete what was logged in this epoch with what was before a restart."""
        self._loops.add_logged(self._rank.logged)

    def end(self) -> None:
        """Save the end of the run, and wait until all is durable; a collective."""
        if self._index() not in (0, self._saved):
            self._save(between_epochs=True, last=True)
        self._checkpointer.wait()

    def _between(self) -> None:
        """Stand between two batches: all of one is done, and the next is not fetched yet."""
        if self._resuming:
            self._resuming = False
            self._loops.enter_epoch(self._state.loaded["loops"])
            self._checkpointer.restore_random_state()
            return
        self.add_logged()
        if self._due:
            self._save(between_epochs=False)

    def _save(self, *, between_epochs: bool, last: bool = False) -> None:
        self._due = False
        self._saved = index = self._index()
        numbers = {n: v.item() for n, v in self._trainer.callback_metrics.items() if v.numel() == 1}
        epoch, steps = self._loops.epochs, self._trainer.global_step
        self.log.append({"epoch": epoch, "step": steps, **numbers})
        optimizer, others = self._optimizers()
        self._rank.batches = None if between_epochs else self._batches
        with self._state.saving(between_epochs=between_epochs):
            self._checkpointer.checkpoint(
                index,
                model=self._trainer.model,  # wrapped in DDP: which makes its buffers alike
                optimizer=optimizer,
                log=self.log,
                metrics=numbers,
                step=steps,
                last=last,
                per_rank={_NAME: self._rank},
                **others,
            )

    def _index(self) -> int:
        return self._loops.epochs if self._every is None else int(self._trainer.global_step)

    def _optimizers(self) -> tuple[Any, dict[str, Any]]:
        """Return the first optimizer, and all objects that are passed by keyword."""
        trainer = self._trainer
        optimizers = self._state.optimizers
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        others = {f"optimizer_{number}": one for number, one in enumerate(optimizers[1:], 2)}
        others |= {f"scheduler_{number}": one for number, one in enumerate(schedulers, 1)}
        return next(iter(optimizers), None), {**others, _NAME: self._state}

    def _refuse(self) -> None:
        names = [cls.__name__ for cls in type(self._trainer.strategy).__mro__]
        unfit = next((name for name in names if name in _OUT_OF_REACH), None)
        if unfit is not None:
            raise ImuckptError(
                f"{unfit} keeps parameters and optimizer in flat pieces that no name leads to.",
                hint="Use DDPStrategy, or ModelParallelStrategy, which shards with FSDP2.",
            )
        averaging = "StochasticWeightAveraging"
        callbacks = [type(each).__name__ for each in self._trainer.callbacks]
        if averaging in callbacks and self._trainer.is_global_zero:
            logger.warning(
                "%s exchanges the schedulers when it begins: from then on no fit() can go on from "
                "what is saved here. Use WeightAveraging, which can be resumed.",
                averaging,
            )
        if self._trainer.ckpt_path is not None:
            raise ValueError(
                f"fit() was given ckpt_path={str(self._trainer.ckpt_path)!r}, and ImuckptCallback "
                "restores as well. Leave it out; what to continue from says "
                "Checkpointer(dir, continue_from=...)."
            )


def _explained(error: StateMismatchError) -> StateMismatchError:
    """Return the error in words of Lightning, where the names of our keywords say nothing to it."""
    if _NAME in error.missing:
        return refusals.made_otherwise(error, "ImuckptCallback", "Lightning", _FIT)
    if any(name.startswith(("optimizer_", "scheduler_")) for name in error.missing):
        message = (
            "configure_optimizers() gives more optimizers or schedulers than when this was saved: "
            f"{', '.join(error.missing)}. Nothing was changed."
        )
        hint = f"Let it give the same, in the same order. {refusals.weights_alone(_FIT)}"
        return StateMismatchError(message, **{**error.facts(), "hint": hint})
    return error
