"""Warn by name of what of a run's state is not saved or not restored, while it can be mended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.saving.collect import Sources
from ray_imuckpt.state.names import parameters_by_name
from ray_imuckpt.state.objects import is_stateful
from ray_imuckpt.state.ownership import unsaved_parameters, unsaved_state
from ray_imuckpt.storage import Storage
from ray_imuckpt.units import listed

logger = logging.getLogger("ray_imuckpt")

_CURE = (
    "Register them on the model, whose state_dict() is to give them, or pass a module that holds "
    "them by keyword to start() and checkpoint(), such as extra=nn.ParameterList([...])."
)


class Audit:
    """The comparison of one `Checkpointer`'s calls with each other; it warns of each name once.

    It is asked on every rank, and speaks on rank 0.
    """

    def __init__(self) -> None:
        self._warned_of: set[str] = set()
        self._started: set[str] | None = None
        self._held: set[str] = set()
        self._has_log = False
        self._looked_at: tuple[Any, ...] | None = None

    def started(self, gang: Gang, targets: Targets, loaded: LoadedCheckpoint | None) -> None:
        """Warn of what ``start`` did not restore.

        Args:
            gang: The gang.
            targets: What ``start`` was given.
            loaded: What it was continued from, all but the tensors read; ``None`` from scratch.
        """
        self._looked_at = None
        optimizer = {} if targets.optimizer is None else {"optimizer": targets.optimizer}
        passed = {**optimizer, **targets.other, **_named(targets.per_rank)}
        self._started = {name for name, value in passed.items() if is_stateful(value)}
        self._held, self._has_log = set(), False
        strange = unsaved_parameters(targets.model, passed)
        if strange:
            self._warn(
                gang,
                "unsaved parameters",
                "No model saves these parameters of an optimizer, and checkpoint() will refuse "
                "them: %s. %s",
                listed(strange),
                _CURE,
            )
        if loaded is None:
            return
        objects = {*loaded.objects, *_named(loaded.per_rank)}
        objects |= {"optimizer"} if loaded.has_optimizer else set()
        self._held = objects | set(loaded.other)
        self._has_log = bool(loaded.log)
        for name in sorted(objects - self._started):
            self._warn(
                gang,
                name,
                "%s is in the checkpoint of epoch %d and was not restored, as start() was not "
                "given it. Pass %s to start(), or load what `other` or read() has of it.",
                name,
                loaded.epoch,
                _as_argument(name),
            )
        self._tell_frozen(gang, targets.model, loaded)
        self._tell_dtypes(gang, targets.model, loaded)

    def saving(self, gang: Gang, sources: Sources) -> None:
        """Raise if an optimizer has parameters that nothing saves; warn of what else is not saved.

        Whatever was looked at before is not looked at again.

        Raises:
            UnsupportedStateError: It names the parameters.
        """
        model, optimizer, log = sources.model, sources.optimizer, sources.log
        passed = {**({} if optimizer is None else {"optimizer": optimizer}), **sources.other}
        passed |= _named(sources.per_rank)
        now = (id(model), log is None, *((n, id(v), _parameters(v)) for n, v in passed.items()))
        if now == self._looked_at:
            return
        strange = unsaved_parameters(model, passed)
        if strange:
            raise UnsupportedStateError(
                f"Nothing saves these parameters of an optimizer: {listed(strange)}. A resumed run "
                "would begin them anew.",
                rank=gang.rank if gang.world_size > 1 else None,
                hint=_CURE,
            )
        self._tell_empty(gang, {"model": model, **passed})
        if self._started is not None:
            self._tell_difference(gang, passed, log)
        self._looked_at = now

    def unstarted(self, gang: Gang, storage: Storage, epoch: int) -> None:
        """Warn of a save below what is there, by a run that has not looked at what is there."""
        if gang.rank != 0:
            return
        catalog = Catalog(storage)
        try:
            newest = max(catalog.committed(), default=epoch)
        except Exception:  # noqa: BLE001 - the save will meet it as well, and tell every rank
            return
        if newest > epoch:
            logger.warning(
                "Epoch %d is saved below epoch %d, the newest in %s, and start() was not called: "
                'a later "last" will be epoch %d. Call start() first, with '
                'continue_from="none" to begin anew.',
                epoch,
                newest,
                storage.url,
                newest,
            )

    def _tell_frozen(self, gang: Gang, model: nn.Module, loaded: LoadedCheckpoint) -> None:
        """Warn of parameters that are trained now and were not, or the other way round."""
        known = loaded.saved_model.tensors
        live = {n: p.requires_grad for n, p in parameters_by_name(model) if n in known}
        thawed = [name for name, trained in live.items() if trained and name in loaded.frozen]
        frozen = [n for n, trained in live.items() if not trained and n not in loaded.frozen]
        for names, then, now in ((thawed, "frozen", "trained"), (frozen, "trained", "frozen")):
            if names:
                self._warn(
                    gang,
                    f"{then} before",
                    "These parameters were %s when epoch %d was saved, and are %s now: %s. Set "
                    "requires_grad as it was for the same run to go on.",
                    then,
                    loaded.epoch,
                    now,
                    listed(names),
                )

    def _tell_dtypes(self, gang: Gang, model: nn.Module, loaded: LoadedCheckpoint) -> None:
        """Warn of parameters that have been rounded to another dtype, or have more digits now."""
        known = loaded.saved_model.tensors
        live = {n: p.dtype for n, p in parameters_by_name(model) if n in known}
        other = [name for name, dtype in live.items() if known[name].dtype != dtype]
        if other:
            self._warn(
                gang,
                "dtypes",
                "These parameters were %s when epoch %d was saved, and are %s now: %s. Build the "
                "model with the dtype that it had for the same run to go on.",
                known[other[0]].dtype,
                loaded.epoch,
                live[other[0]],
                listed(other),
            )

    def _tell_empty(self, gang: Gang, passed: Mapping[str, Any]) -> None:
        for name, value in passed.items():
            held = unsaved_state(value)
            if held:
                self._warn(
                    gang,
                    f"{name} is empty",
                    "%s (%s) has an empty state_dict(): what it holds (%s) is not saved. Make it "
                    "persistent (torchmetrics: persistent(True)), or reset it every epoch and do "
                    "not pass it.",
                    name,
                    type(value).__name__,
                    listed(held),
                )

    def _tell_difference(self, gang: Gang, passed: Mapping[str, Any], log: Any) -> None:
        started = self._started or set()
        for name in sorted({n for n, v in passed.items() if is_stateful(v)} - started - self._held):
            self._warn(
                gang,
                name,
                "%s is saved, and start() was not given it: a run that is resumed will begin with "
                "it as built. Pass %s to start() as well.",
                name,
                _as_argument(name),
            )
        for name in sorted((started | self._held) - set(passed)):
            self._warn(
                gang,
                f"{name} dropped",
                "%s was %s, and is not passed to checkpoint(): the checkpoints from now on do not "
                "hold it. Pass %s to checkpoint() as well.",
                name,
                "given to start()" if name in started else "in the checkpoint continued from",
                _as_argument(name),
            )
        if self._has_log and log is None:
            self._warn(
                gang,
                "log",
                "The log of the checkpoint continued from is not passed to checkpoint(): the "
                "checkpoints from now on have none. Pass log=.",
            )

    def _warn(self, gang: Gang, about: str, message: str, *arguments: object) -> None:
        if about not in self._warned_of:
            self._warned_of.add(about)
            if gang.rank == 0:
                logger.warning(message, *arguments)


def _named(per_rank: Mapping[str, Any]) -> dict[str, Any]:
    return {f"per_rank[{name!r}]": value for name, value in per_rank.items()}


def _as_argument(name: str) -> str:
    return "per_rank={...}" if name.startswith("per_rank[") else f"{name}=..."


def _parameters(value: Any) -> int:
    """Return how many parameters an optimizer has: more may be added to the same one."""
    return sum(len(group["params"]) for group in getattr(value, "param_groups", ()))
