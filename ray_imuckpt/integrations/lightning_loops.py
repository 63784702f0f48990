"""The loops in which Lightning keeps a training: private names, each with the reason beside it.

Lightning restores loops from a file that `fit` is given, and saves them where an epoch is not quite
over: plateau schedulers step behind the hook, validation runs behind the other one, and what was
logged of an unfinished epoch is not saved at all. So the loops are saved where nothing is under
way, and take up their work as if they had never left it. All names are of Lightning 2.6; what
fails when one is gone, or means something else, is in docs/versions.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ray_imuckpt.errors import ImuckptError
from ray_imuckpt.integrations import versions
from ray_imuckpt.integrations.batches import Batches

_FRAMEWORK = "Lightning"
_FIT = (
    *("_combined_loader", "_data_fetcher", "_restarting", "_resuming_from_checkpoint"),
    *("epoch_loop", "epoch_progress"),
)
_EPOCH = ("_results", "batch_progress", "restarting")
_PROGRESS = ("processed", "ready")
_FETCHER = ("_combined_loader", "fetched", "length", "setup")
_EPOCHS, _BATCHES = "epoch_progress", "epoch_loop.batch_progress"


class TrainingLoops:
    """The loops of a Lightning ``Trainer`` that fits.

    Args:
        trainer: The trainer.

    Raises:
        ImuckptError: Its loops lack what is read or set here.
    """

    def __init__(self, trainer: Any) -> None:
        self._fit = fit = trainer.fit_loop
        versions.check_names(_FRAMEWORK, "Trainer.fit_loop", fit, _FIT)
        self._epoch = epoch = fit.epoch_loop
        versions.check_names(_FRAMEWORK, "Trainer.fit_loop.epoch_loop", epoch, _EPOCH)
        for progress in (fit.epoch_progress, epoch.batch_progress):
            versions.check_names(_FRAMEWORK, "a loop's progress", progress.current, _PROGRESS)

    @property
    def epochs(self) -> int:
        """Return how many epochs are over."""
        return int(self._fit.epoch_progress.current.processed)

    def state_dict(self, *, between_epochs: bool) -> dict[str, Any]:
        """Return how far each loop has come, as plain numbers.

        Args:
            between_epochs: Whether no epoch is under way: at the hook that begins one, Lightning
                has counted it as ready.
        """
        state: dict[str, Any] = self._fit.state_dict()
        state["state_dict"] = {}  # the loaders' states, which are each rank's own
        if between_epochs:
            for progress in state[_EPOCHS].values():
                progress.update(dict.fromkeys(progress, progress["processed"]))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the loops go on from there, once they run."""
        self._fit.load_state_dict(state)

    def go_on(self, *, between_epochs: bool) -> None:
        """Take back, before the first epoch runs, what Lightning does for a restart of its own.

        It would neither step plateau schedulers at the end of this epoch nor validate where the
        last batch was one to validate after, and would warn of loaders without a ``state_dict``.
        """
        self._epoch.restarting = False  # of it and the loops below
        self._fit._restarting = False  # its setter insists on True where max_steps is given
        if between_epochs:  # the iterator of before this is to be made anew, as in every epoch
            self._fit._resuming_from_checkpoint = False

    def batches(self, between: Callable[[], None]) -> Batches:
        """Put `Batches` between the loaders and the loop; return them.

        Raises:
            ImuckptError: ``training_step`` takes the batches itself.
        """
        fetcher = self._fit._data_fetcher
        if not hasattr(fetcher, "prefetch_batches"):
            raise ImuckptError(
                "training_step() takes its batches from an iterator itself, so that Lightning does "
                "not know how many were trained on: there is no place to save between two of them.",
                hint="Leave out every_n_train_steps, or let training_step() take a batch.",
            )
        versions.check_names(_FRAMEWORK, "the fetcher of batches", fetcher, _FETCHER)
        ahead = 0 if fetcher.length is not None else fetcher.prefetch_batches
        batches = Batches(self._fit._combined_loader, fetcher.length, ahead, between)
        fetcher.setup(batches)
        return batches

    def begin(self) -> None:
        """Let the first epoch of this process begin with the batches that were put in."""
        iter(self._fit._data_fetcher)

    @property
    def loaders(self) -> list[Any]:
        """Return the training loaders; none before Lightning has asked for them."""
        combined = self._fit._combined_loader
        return [] if combined is None else combined.flattened

    def uses(self, batches: Batches | None) -> bool:
        """Return whether the loop takes its batches from these; loaders may have been reloaded."""
        return self._fit._data_fetcher._combined_loader is batches

    def enter_epoch(self, state: dict[str, Any]) -> None:
        """Stand behind the last batch that was trained on; called while the next one is fetched."""
        self._fit.load_state_dict(state)
        self.go_on(between_epochs=False)
        self._fit._data_fetcher.fetched = self._epoch.batch_progress.current.ready

    @staticmethod
    def trained(state: dict[str, Any]) -> int:
        """Return how many batches of the epoch under way a state was trained on."""
        return int(state[_BATCHES]["current"]["ready"])

    @staticmethod
    def standing(state: dict[str, Any], batches: int) -> dict[str, Any]:
        """Return the same state behind another number of batches."""
        progress = state[_BATCHES]
        current = dict.fromkeys(progress["current"], batches)
        return {**state, _BATCHES: {**progress, "current": current}}

    def logged(self) -> dict[str, Any]:
        """Return what this rank has logged of the epoch under way, and not averaged yet."""
        return {
            name: dict(metric.metric_state)
            for name, metric in self._epoch._results.items()
            if metric.is_tensor and metric.meta.on_epoch
        }

    def add_logged(self, saved: dict[str, Any]) -> None:
        """Add what was logged before the restart, as far as it is logged again by now.

        Args:
            saved: What `logged` gave; what was added is removed from it.
        """
        for name in [name for name in saved if name in self._epoch._results]:
            metric, before = self._epoch._results[name], saved.pop(name)
            meta = metric.meta
            if meta.is_max_reduction or meta.is_min_reduction:
                metric.value = meta.reduce_fx(before["value"].to(metric.value), metric.value)
                continue
            for part, value in before.items():  # a sum, and of a mean the number of its samples
                now = getattr(metric, part)
                setattr(metric, part, value.to(now) + now)


def metric_states(module: torch.nn.Module) -> dict[str, Any]:
    """Return the states of all torchmetrics of a module by name; most are in no ``state_dict``."""
    return {
        name: {"updates": metric.update_count, "state": {**metric.metric_state}}
        for name, metric in _metrics(module)
    }


def apply_metric_states(module: torch.nn.Module, saved: dict[str, Any]) -> None:
    """Apply what `metric_states` gave, on the devices of the metrics."""
    for name, metric in _metrics(module):
        if name not in saved:
            continue
        versions.check_names("torchmetrics", "a Metric", metric, ("_computed", "_update_count"))
        for part, value in saved[name]["state"].items():
            setattr(metric, part, _moved(value, metric.device))
        metric._update_count = saved[name]["updates"]  # running means weigh by it
        metric._computed = None


def _metrics(module: torch.nn.Module) -> list[tuple[str, Any]]:
    from torchmetrics import Metric  # Lightning depends on it

    return [(name, each) for name, each in module.named_modules() if isinstance(each, Metric)]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value
