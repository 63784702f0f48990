"""The state of a Lightning ``Trainer``, beside its module, optimizers and schedulers."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.integrations import refusals
from ray_imuckpt.integrations.batches import Batches, take_loaders
from ray_imuckpt.integrations.deals import Deal
from ray_imuckpt.integrations.lightning_loops import (
    TrainingLoops,
    apply_metric_states,
    metric_states,
)

logger = logging.getLogger("ray_imuckpt")

_BASES = ("Callback", "LightningModule", "CheckpointHooks")  # their hooks do nothing


class TrainerState:
    """The state of a trainer that all ranks hold alike, as an object that a Checkpointer keeps.

    Args:
        trainer: The trainer.
        module: The ``LightningModule``.
        loops: The trainer's loops.
        by_steps: Whether the run is saved under numbers of steps.

    Attributes:
        loaded: What was loaded; ``None`` from scratch.
        between_epochs: Whether what is saved, or was loaded, stands between two epochs.
    """

    def __init__(
        self, trainer: Any, module: nn.Module, loops: TrainingLoops, *, by_steps: bool
    ) -> None:
        self.loaded: Any = None
        self._by_steps = by_steps
        self.between_epochs = True
        self._trainer = trainer
        self._module = module
        self._loops = loops
        self._cached: dict[str, Any] | None = None

    @property
    def optimizers(self) -> list[Any]:
        """Return the optimizers, without the stand-in of a module that configures none."""
        return [
            each for each in self._trainer.optimizers if type(each).__name__ != "_MockOptimizer"
        ]

    @property
    def deal(self) -> Deal:
        """Return how samples are dealt to the ranks, once there are loaders."""
        return Deal.of(self._loops.loaders, self._trainer.world_size)

    @property
    def trained(self) -> int:
        """Return how many batches of its epoch the loaded state was trained on."""
        return self._loops.trained(self.loaded["loops"])

    @contextlib.contextmanager
    def saving(self, *, between_epochs: bool) -> Iterator[None]:
        """Take the state, with what ``on_save_checkpoint`` adds to it, once for a save."""
        self.between_epochs = between_epochs
        state = self._take()
        self._cached = {**state, "hooks": self._hooks(state)}
        try:
            yield
        finally:
            self._cached = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as trees and tensors."""
        return self._cached or {**self._take(), "hooks": {"added": {}, "same": []}}

    def _take(self) -> dict[str, Any]:
        trainer, precision = self._trainer, self._trainer.precision_plugin
        data = trainer.datamodule
        return {
            "by_steps": self._by_steps,
            "deal": self.deal._asdict(),
            "between_epochs": self.between_epochs,
            "optimizers": len(self.optimizers),
            "schedulers": len(trainer.lr_scheduler_configs),
            "loops": self._loops.state_dict(between_epochs=self.between_epochs),
            "callbacks": {c.state_key: s for c in trainer.callbacks if (s := c.state_dict())},
            "precision": {"class": type(precision).__name__, "state": precision.state_dict()},
            "datamodule": None if data is None else data.state_dict(),
            "should_stop": trainer.should_stop,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what can be tried and undone; `resume` does the rest.

        Raises:
            StateMismatchError: It is of a trainer with other optimizers, schedulers or loops, or
                of one that saved by steps, where this one saves by epochs.
        """
        self._check(state)
        trainer, precision = self._trainer, self._trainer.precision_plugin
        for callback in trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(copy.deepcopy(state["callbacks"][callback.state_key]))
        if type(precision).__name__ == state["precision"]["class"]:
            precision.load_state_dict(state["precision"]["state"])
        if trainer.datamodule is not None and state["datamodule"]:
            trainer.datamodule.load_state_dict(state["datamodule"])
        self.loaded = state

    def resume(self) -> None:
        """Apply the rest of what was loaded; the module and its optimizers are restored."""
        state, trainer = self.loaded, self._trainer
        self.between_epochs = state["between_epochs"]
        self._loops.load_state_dict(state["loops"])
        trainer.should_stop = state["should_stop"]
        trainer.num_sanity_val_steps = 0  # the run that goes on has made its sanity check
        self._tell(state)
        hooks = state["hooks"]
        if self._with("on_load_checkpoint"):
            ours = self._as_lightning_keeps_it(state)
            same = dict.fromkeys(hooks["same"], ours["state_dict"])
            self._ask("on_load_checkpoint", {**ours, **same, **hooks["added"]})

    def _check(self, state: dict[str, Any]) -> None:
        here = {
            "optimizers": len(self.optimizers),
            "schedulers": len(self._trainer.lr_scheduler_configs),
        }
        for what, number in here.items():
            if state[what] != number:
                raise StateMismatchError(
                    f"configure_optimizers() gave {state[what]} {what} when this was saved, and "
                    f"gives {number} now. Nothing was changed.",
                    hint="Let it give the same, in the same order. "
                    + refusals.weights_alone("fit()"),
                )
        if state["by_steps"] and not self._by_steps:  # which would never be the last ones
            raise StateMismatchError(
                "This run was saved under the numbers of its steps (every_n_train_steps), and "
                "would now be saved under those of its epochs, which are lower. Nothing was "
                "changed.",
                hint="Pass ImuckptCallback(..., every_n_train_steps=N), as before.",
            )
        loops = self._loops.state_dict(between_epochs=True).keys()
        if loops != state["loops"].keys():
            raise StateMismatchError(
                "The loops of this Lightning are not those of the one that saved.",
                missing=sorted(loops - state["loops"].keys()),
                unexpected=sorted(state["loops"].keys() - loops),
                hint="Go on with the version of Lightning that saved it.",
            )

    def _tell(self, state: dict[str, Any]) -> None:
        trainer = self._trainer
        if not trainer.is_global_zero:
            return
        present = {callback.state_key for callback in trainer.callbacks}
        gone = sorted(state["callbacks"].keys() - present)
        if gone:
            logger.warning(
                "The checkpoint holds the state of callbacks that this Trainer does not have: %s. "
                "Pass them in Trainer(callbacks=...) for the same run to go on.",
                ", ".join(gone),
            )
        saved, here = state["precision"]["class"], type(trainer.precision_plugin).__name__
        if saved != here:
            logger.warning(
                "The run was saved with the precision plugin %s and goes on with %s, whose state "
                "begins anew.",
                saved,
                here,
            )
        if trainer.should_stop:
            logger.info(
                "The run had been stopped early, by a callback: fit() trains nothing more. To go "
                "on nevertheless, continue_from an earlier checkpoint."
            )

    def _hooks(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what ``on_save_checkpoint`` adds to, or changes in, what Lightning would save."""
        if not self._with("on_save_checkpoint"):
            return {"added": {}, "same": []}
        ours = self._as_lightning_keeps_it(state)
        checkpoint = dict(ours)
        self._ask("on_save_checkpoint", checkpoint)
        changed = {name: value for name, value in checkpoint.items() if value is not ours.get(name)}
        same = [name for name, value in changed.items() if value is ours["state_dict"]]
        return {"added": {n: v for n, v in changed.items() if n not in same}, "same": same}

    def _as_lightning_keeps_it(self, state: dict[str, Any]) -> dict[str, Any]:
        return {
            "epoch": self._loops.epochs,
            "global_step": self._trainer.global_step,
            "state_dict": self._module.state_dict(),
            "loops": {"fit_loop": state["loops"]},
            "callbacks": state["callbacks"],
            "optimizer_states": [optimizer.state_dict() for optimizer in self.optimizers],
            "lr_schedulers": [c.scheduler.state_dict() for c in self._trainer.lr_scheduler_configs],
        }

    def _with(self, hook: str) -> list[Any]:
        everyone = (*self._trainer.callbacks, self._module)
        return [each for each in everyone if _overrides(each, hook)]

    def _ask(self, hook: str, checkpoint: dict[str, Any]) -> None:
        for each in self._with(hook):
            if each is self._module:
                getattr(each, hook)(checkpoint)
            else:
                getattr(each, hook)(self._trainer, self._module, checkpoint)


class RankState:
    """The state that differs by rank: the position in the loaders, and what was logged so far.

    Args:
        trainer: The trainer.
        module: The ``LightningModule``.
        loops: The trainer's loops.

    Attributes:
        batches: What knows the position in an epoch; ``None`` between two epochs.
        position: The position that was loaded; ``None`` from scratch.
        logged: What is still to be added to what is logged in this epoch.
    """

    def __init__(self, trainer: Any, module: nn.Module, loops: TrainingLoops) -> None:
        self.batches: Batches | None = None
        self.position: dict[str, Any] | None = None
        self.logged: dict[str, Any] = {}
        self._trainer = trainer
        self._module = module
        self._loops = loops
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as trees and tensors."""
        if self.batches is None:
            position, logged = take_loaders(self._loops.loaders), {}
        else:
            position, logged = self.batches.state_dict(), {**self.logged, **self._loops.logged()}
        return {
            "position": position,
            "logged": logged,
            "metrics": dict(self._trainer.callback_metrics),
            "metric_states": metric_states(self._module),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was saved, for `resume` and for when there are loaders."""
        self._loaded = state

    def resume(self) -> None:
        """Apply what was loaded, as far as that can be done before there are loaders."""
        if self._loaded is not None:
            self.position, self.logged = self._loaded["position"], self._loaded["logged"]
            self._trainer.callback_metrics.update(self._loaded["metrics"])
            apply_metric_states(self._module, self._loaded["metric_states"])


def _overrides(value: Any, hook: str) -> bool:
    """Return whether a callback or module has this hook of another class than Lightning's bases."""
    first = next(cls for cls in type(value).__mro__ if hook in vars(cls))
    return first.__name__ not in _BASES
