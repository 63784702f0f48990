"""A live model that a saved state is applied to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import (
    TensorInfo,
    TensorKey,
    are_tied,
    disjoint,
    first_of_tied,
    is_plain,
    takes,
)
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.lazy import may_become, shapes_to_be
from ray_imuckpt.state.model import apart, is_extra, metadata_of, tensors_in
from ray_imuckpt.state.names import Names
from ray_imuckpt.state.pieces import Share, taking, without_overlaps
from ray_imuckpt.state.receiving import differ, is_lossy, put_left, unwritable
from ray_imuckpt.state.rehearsal import custom_loading, rehearse, without_data
from ray_imuckpt.state.sharding import like, part_here
from ray_imuckpt.state.wrappers import bare
from ray_imuckpt.threads.parallel import uncollected


class LeftOut(NamedTuple):
    """The names that were not restored, where the saved ones differ from those here.

    Attributes:
        missing: What is here and was not saved: it stays as it was built.
        unexpected: What was saved and is not here: it is not used.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


class SavedModel(NamedTuple):
    """A model's state as it was saved, in the names of the bare module.

    Attributes:
        tensors: Tied names included; or where the tensors lie in a file, before they are read.
        extra: What modules gave as extra state.
        versions: As `ModelState.versions`; ``None`` where they were not saved: then modules are
            told that what they load is of their present version.
    """

    tensors: dict[str, Any]
    extra: dict[str, Any]
    versions: Mapping[str, int] | None = None

    @property
    def names(self) -> set[str]:
        """Return the names of all that was saved."""
        return {*self.tensors, *self.extra}


def as_saved_model(state: Mapping[str, Any]) -> SavedModel:
    """Return the state of a model that was saved by keyword: tensors and extra state by name."""
    kinds = torch.Tensor, TensorInfo, Share
    tensors = {name: value for name, value in state.items() if isinstance(value, kinds)}
    return SavedModel(tensors, {name: v for name, v in state.items() if name not in tensors})


class _Fit(NamedTuple):
    """A comparison of saved names with a model's; `wrong`: name to (shape saved, shape here)."""

    missing: list[str]
    unexpected: list[str]
    wrong: dict[str, tuple[list[int], list[int]]]


class LiveModel:
    """A model that a saved state is applied to; it is gone through once for all steps.

    Args:
        model: The model, wrapped or bare; only `apply` changes it.

    Raises:
        UnsupportedStateError: Its names do not lead back to its tensors; see `Names`.
    """

    @uncollected
    def __init__(self, model: nn.Module) -> None:
        self._module = bare(model)
        self._name_of = names = Names(self._module)
        self._state = self._module.state_dict(keep_vars=True)
        self._names = names.of_keys(self._state)
        self._first = first_of_tied(tensors_in(self._state), apart)

    @cached_property
    def _custom(self) -> tuple[str, ...]:
        """Return where modules themselves decide what saved names mean; see `custom_loading`."""
        return custom_loading(self._module)

    @cached_property
    def _to_be(self) -> dict[int, list[int]]:
        """Return what is known of the shapes of lazy parameters."""
        return shapes_to_be(self._module)

    @uncollected
    def check(self, saved: SavedModel, *, strict: bool) -> LeftOut:
        """Raise unless a state with these tensors can be applied.

        Where names or shapes differ and modules load in a way of their own, these decide.

        Args:
            saved: The state; of its tensors the shapes count.
            strict: Whether missing and unexpected names are errors. Wrong shapes always are, and
                that nothing fits.

        Returns:
            What `apply` will leave out; nothing when `strict`.

        Raises:
            StateMismatchError: It lists every name that does not fit.
        """
        self._check_memory(saved)
        fit = self._fit_by_names(saved)
        if any(fit) and self._custom:
            fit = self._fit_by_rehearsal(saved, fit)
        names = saved.names
        nothing = names.issubset(fit.unexpected) and (names or self._names)
        if fit.wrong or nothing or (strict and (fit.missing or fit.unexpected)):
            cure = "Build the model as it was when it was saved"
            may_be_partial = not (fit.wrong or nothing)
            raise StateMismatchError(
                f"{'Nothing in the' if nothing else 'The'} checkpoint "
                f"{'fits' if nothing else 'does not fit'} this {type(self._module).__name__}.",
                missing=fit.missing if strict or nothing else [],
                unexpected=fit.unexpected if strict or nothing else [],
                wrong_shape=fit.wrong,
                hint=cure + (", or pass strict=False to load what fits." * may_be_partial or "."),
            )
        return LeftOut(tuple(fit.missing), tuple(fit.unexpected))

    def _check_memory(self, saved: SavedModel) -> None:
        """Raise `StateMismatchError` if live tensors have no memory that may be written."""
        kind = type(self._module).__name__
        empty = [name for name, value in self._module.named_parameters() if value.is_meta]
        if empty:
            raise StateMismatchError(
                f"This {kind} has no memory to load into: {empty[0]} and {len(empty) - 1} more are "
                "on the meta device.",
                hint="Call model.to_empty(device=...) first.",
            )
        there = self._covered(saved)
        unfit = [
            f"{self._names[key]} {why}"
            for key, first in self._first.items()
            if first in there and (why := unwritable(self._state[key]))
        ]
        if unfit:
            raise StateMismatchError(
                f"This {kind} has tensors that nothing can be loaded into: {'; '.join(unfit)}.",
                hint="Give each memory of its own that may be written: value = value.clone(), "
                "outside of torch.inference_mode().",
            )
        lossy = [
            f"{self._names[key]} was {stored.dtype} and is {self._state[key].dtype}"
            for key in self._first
            if isinstance(stored := saved.tensors.get(self._names[key]), (TensorInfo, torch.Tensor))
            and is_lossy(stored.dtype, self._state[key].dtype)
            and not key.startswith(self._custom)  # these convert, perhaps
        ]
        if lossy:
            raise StateMismatchError(
                f"This {kind} has tensors that cannot hold what was saved: {'; '.join(lossy)}.",
                hint="Build the model with the dtypes that it had.",
            )

    def _covered(self, saved: SavedModel) -> set[str]:
        """Return the first keys of tied tensors of which one name was saved: that is enough."""
        names = saved.names
        return {first for key, first in self._first.items() if self._names[key] in names}

    def _fit_by_names(self, saved: SavedModel) -> _Fit:
        live, names = set(self._names.values()), saved.names
        there = self._covered(saved)
        covered = {self._names[key] for key, first in self._first.items() if first in there}
        wrong: dict[str, tuple[list[int], list[int]]] = {}
        for key in self._first:
            name, value = self._names[key], self._state[key]
            stored = saved.tensors.get(name)
            if not is_plain(value) and nn.parameter.is_lazy(value):
                known = self._to_be.get(id(value))
                if stored is not None and known is not None and not may_become(known, stored.shape):
                    wrong[name] = list(stored.shape), known
                continue
            if stored is not None and value.shape != stored.shape:
                wrong[name] = list(stored.shape), list(value.shape)
        return _Fit(sorted(live - names - covered), sorted(names - live), wrong)

    def _fit_by_rehearsal(self, saved: SavedModel, by_names: _Fit) -> _Fit:
        """Return what modules make of it; of what they are given as extra state, names decide."""
        others = {name: value for name, value in saved.extra.items() if not is_extra(name)}
        rehearsed = SavedModel(without_data(saved.tensors), others, saved.versions)
        result = rehearse(self._module, self._arranged(rehearsed))
        if result is None:
            return by_names
        missing, unexpected = (
            {self._name_of(key) for key in keys if not is_extra(key)} for keys in result
        )
        missing |= set(filter(is_extra, by_names.missing))
        unexpected |= set(filter(is_extra, by_names.unexpected))
        return _Fit(sorted(missing), sorted(unexpected), {})

    @uncollected
    def memory(self, saved: Mapping[str, TensorInfo]) -> dict[TensorKey, torch.Tensor | Share]:
        """Return what may take the bytes of stored tensors, by their key: live ones, and new parts.

        Not where a module may rearrange what it is given: it gets whole tensors in fresh memory.
        """
        memory: dict[TensorKey, torch.Tensor] = {}
        parts: dict[TensorKey, torch.Tensor | Share] = {}
        taken: set[str] = set()
        for key, first in self._first.items():
            info = saved.get(self._names[key])
            if info is None or info.key in memory or info.key in parts or first in taken:
                continue
            if key.startswith(self._custom):
                continue
            live = self._state[key]
            if takes(live, info.dtype, info.shape):
                memory[info.key] = live
                taken.add(first)
            elif (part := taking(live, info)) is not None:
                parts[info.key] = part
                taken.add(first)
        return {**disjoint(memory), **without_overlaps(parts)}

    @uncollected
    def apply(self, saved: SavedModel) -> None:
        """Load what `check` has accepted, in place; live tensors keep their device and dtype.

        Raises:
            Exception: Whatever a module's own loading raises.
        """
        state = self._arranged(saved)
        for key in self._first:
            stored, value = state.get(key), self._state[key]
            if isinstance(stored, Share):
                if stored.local.numel():
                    part_here(value.detach()).copy_(stored.local)
                state[key] = value
            elif isinstance(stored, torch.Tensor):
                # What was read into a live tensor is there: torch skips a copy to itself.
                state[key] = value if are_tied(stored, value, apart) else like(stored, value)
        result = self._module.load_state_dict(state, strict=False)
        # A module that overrides load_state_dict may return anything.
        put_left(self._module, self._state, state, getattr(result, "unexpected_keys", ()))

    def _arranged(self, saved: SavedModel) -> OrderedDict[str, Any]:
        """Return the saved values as a state dict of the module, with its own keys and notes."""
        tensors, extra, versions = saved
        state: OrderedDict[str, Any] = OrderedDict()
        metadata = metadata_of(self._state)
        if versions is not None:
            metadata = {
                path: {**notes, "version": versions.get(self._name_of.of_module(path), 1)}
                for path, notes in metadata.items()
            }
        # Private, but documented by Module.load_state_dict: modules read their version there.
        state._metadata = metadata  # type: ignore[attr-defined] # noqa: SLF001
        by_first: dict[str, torch.Tensor] = {}
        for key, first in self._first.items():
            stored = tensors.get(self._names[key])
            if stored is not None and differ(by_first.setdefault(first, stored), stored):
                raise StateMismatchError(
                    f"{self._names[first]} and {self._names[key]} are one tensor here, and were "
                    "two, of different values, when they were saved.",
                    hint="Build the model as it was when it was saved.",
                )
        for key in self._state:
            name = self._names[key]
            if name in extra:
                state[key] = extra[name]
            elif self._first.get(key) in by_first:
                state[key] = by_first[self._first[key]]
        if self._custom:
            known = set(self._names.values())
            strange = {n: v for n, v in (*tensors.items(), *extra.items()) if n not in known}
            state.update({self._name_of.key(name): value for name, value in strange.items()})
        return state
