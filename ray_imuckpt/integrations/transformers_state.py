"""The state of a transformers ``Trainer``, beside its model, optimizer and scheduler."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.integrations.batches import apply_generators, take_generators
from ray_imuckpt.integrations.deals import Deal
from ray_imuckpt.state.random_state import apply_random, take_random

_NOT_SAVED = frozenset(  # of a TrainerState: what the arguments of this process say, and the log
    {
        *("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps"),
        *("train_batch_size", "is_hyper_param_search", "trial_name", "trial_params"),
        *("is_local_process_zero", "is_world_process_zero", "stateful_callbacks", "log_history"),
    }
)


class TrainerProgress:
    """The progress of a trainer, and the states of its callbacks: alike on all ranks.

    Args:
        trainer: The trainer.
        exportable: The class of the callbacks that have a state.

    Attributes:
        loaded: What was loaded; ``None`` from scratch.
        epoch: The epoch to go on with, counted from 0.
        trained: How many batches of it were trained on.
        deal: How its samples are dealt to the ranks; ``None`` before one is entered.
    """

    def __init__(self, trainer: Any, exportable: type) -> None:
        self._exportable_state = exportable
        self.loaded: Any = None
        self.deal: Deal | None = None
        self.epoch = 0
        self.trained = 0
        self._trainer = trainer

    @property
    def over(self) -> bool:
        """Return whether all steps are made."""
        state = self._trainer.state
        return bool(state.global_step >= state.max_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as trees."""
        fields = dataclasses.fields(self._trainer.state)
        names = [field.name for field in fields if field.name not in _NOT_SAVED]
        callbacks = defaultdict(list)
        for callback in self._exportable():
            callbacks[type(callback).__name__].append(callback.state()["attributes"])
        return {
            "epoch": self.epoch,
            "trained": self.trained,
            "deal": None if self.deal is None else self.deal._asdict(),
            "stopped": self._trainer.control.should_training_stop and not self.over,
            "state": {name: getattr(self._trainer.state, name) for name in names},
            "callbacks": dict(callbacks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was saved, for `resume`.

        Raises:
            StateMismatchError: Another version of transformers keeps something else.
        """
        fields = {field.name for field in dataclasses.fields(self._trainer.state)}
        unknown = state["state"].keys() - fields
        if unknown:
            raise StateMismatchError(
                "This version of transformers keeps another TrainerState than the one that saved.",
                unexpected=sorted(unknown),
                hint="Go on with the version of transformers that saved it.",
            )
        self.loaded = state
        self.epoch, self.trained = state["epoch"], state["trained"]

    def resume(self, log: list[dict[str, Any]]) -> None:
        """Apply what was loaded; what callbacks have counted since is undone.

        Args:
            log: What the trainer has logged so far.
        """
        state = self._trainer.state
        for name, value in self.loaded["state"].items():
            setattr(state, name, value)
        state.log_history = list(log)
        saved = {name: list(values) for name, values in self.loaded["callbacks"].items()}
        for callback in self._exportable():
            values = saved.get(type(callback).__name__)
            for name, value in (values.pop(0) if values else {}).items():
                setattr(callback, name, value)

    def _exportable(self) -> list[Any]:
        return [
            each
            for each in self._trainer.callback_handler.callbacks
            if isinstance(each, self._exportable_state)
        ]


class EpochBatches:
    """The batches of one epoch of one rank, with what finds the position in them again.

    A loader of accelerate has fetched a batch more than it has given: so the random numbers are
    noted from before each batch that was asked for.

    Args:
        loader: The loader; ``iter`` of it is called when the first batch is asked for.
    """

    def __init__(self, loader: Any) -> None:
        self.taken = 0
        self._loader = loader
        self._began: dict[str, Any] = {
            "random": take_random(),
            "generators": take_generators([loader]),
        }
        self._before: dict[str, Any] | None = None
        self._iterator: Iterator[Any] | None = None

    def draw_from(self, iterator: Iterator[Any]) -> None:
        """Take the batches from an iterator of the loader, unless they come from one already."""
        if self._iterator is None:
            self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        if self._iterator is None:
            self._iterator = iter(self._loader)
        self._before = take_random()
        batch = next(self._iterator)
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"began": self._began, "before": self._before}

    def resume(self, state: dict[str, Any] | None, trained: int) -> None:
        """Go to a position; what is drawn from random generators on the way is not put back.

        Args:
            state: What `state_dict` gave; ``None`` where that is of another gang.
            trained: How many batches are passed over.
        """
        if state is not None:
            self._began = state["began"]
            apply_random(self._began["random"])
            apply_generators([self._loader], self._began["generators"])
        for number in range(trained):
            if state is not None and number == trained - 1:
                apply_random(state["before"])
            next(self)
        if state is not None:
            self._before = state["before"]


class RankProgress:
    """The state that differs by rank: the position in the batches, the loss not logged yet.

    Args:
        trainer: The trainer.

    Attributes:
        batches: Those of the epoch under way; ``None`` between two epochs.
        position: The position that was loaded; ``None`` from scratch and between two epochs.
        loss: The loss that was loaded.
        last_logged: The step of it that was logged last.
    """

    def __init__(self, trainer: Any) -> None:
        self.batches: EpochBatches | None = None
        self.position: dict[str, Any] | None = None
        self.loss: Any = None
        self.last_logged = 0
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as trees and tensors."""
        trainer = self._trainer
        return {
            "position": None if self.batches is None else self.batches.state_dict(),
            "loss": getattr(trainer, "_tr_loss", None),
            "last_logged": getattr(trainer, "_globalstep_last_logged", 0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was saved, for when there are batches."""
        self.position, self.loss = state["position"], state["loss"]
        self.last_logged = state["last_logged"]
