"""The state of an optimizer, keyed by the names of the parameters.

`torch.optim.Optimizer.state_dict` numbers parameters by their position, so that adding a layer
moves every number behind it. Here each number is replaced by the parameter's name in the bare
module; a parameter that the model does not know is named ``param_groups[g][i]`` by its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import Share, TensorKey
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.state.exact import apply_exactly
from ray_imuckpt.state.fitting import check_layout, check_shapes, is_torchs
from ray_imuckpt.state.layouts import SavedLayouts
from ray_imuckpt.state.names import parameter_names
from ray_imuckpt.state.optimizer_memory import memory_for, memory_for_none
from ray_imuckpt.state.sharding import detached, is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_object, bare_optimizer
from ray_imuckpt.threads.parallel import uncollected

OptimizerState = dict[str, Any]
"""``class``; ``param_groups`` as torch's, ``params`` being names; ``state``: name to values."""

_OR_THE_REST = "or pass optimizer=None to start() to restore the rest."


@uncollected
def take_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> OptimizerState:
    """Return the state of `optimizer`; what is sharded stays so.

    A `ZeroRedundancyOptimizer` must have been consolidated, to this rank.
    """
    optimizer = bare_optimizer(optimizer)
    plain = optimizer.state_dict()
    check_layout(optimizer, plain)
    names = _names_by_index(optimizer, plain, model)
    groups = [
        {**group, "params": [names[index] for index in group["params"]]}
        for group in plain["param_groups"]
    ]
    state = {names.get(index, index): _detached(values) for index, values in plain["state"].items()}
    _check_keys(optimizer, plain, names)
    rest = {key: value for key, value in plain.items() if key not in ("param_groups", "state")}
    return {"class": class_name(optimizer), "param_groups": groups, "state": state, **rest}


class LiveOptimizer:
    """An optimizer that a saved state is applied to.

    Args:
        optimizer: The optimizer; only `apply` changes it.
        model: Whose parameters it optimizes.
    """

    @uncollected
    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self._optimizer: torch.optim.Optimizer = bare_optimizer(optimizer)
        self._names = _live_names(optimizer, model)

    def check(self, saved: OptimizerState) -> None:
        """Raise unless `saved` fits: class, groups, and the parameters of each group.

        Raises:
            StateMismatchError: It says what differs.
        """
        kind = class_name(self._optimizer)
        if not saved["class"]:
            self._check_options(saved, kind)
        elif saved["class"] != kind:
            raise StateMismatchError(
                f"The checkpoint holds the state of a {saved['class']}, this optimizer is a "
                f"{kind}.",
                hint=f"Build the same optimizer, {_OR_THE_REST}",
            )
        if len(self._names) != len(saved["param_groups"]):
            raise StateMismatchError(
                f"The saved optimizer had {len(saved['param_groups'])} parameter group(s), "
                f"this one has {len(self._names)}.",
                hint=f"Build the optimizer with the same groups, {_OR_THE_REST}",
            )
        for number, (here, group) in enumerate(
            zip(self._names, saved["param_groups"], strict=True)
        ):
            missing = sorted(set(here) - set(group["params"]))
            unexpected = sorted(set(group["params"]) - set(here))
            if missing or unexpected:
                raise StateMismatchError(
                    f"The parameters of the optimizer's group {number} differ.",
                    missing=missing,
                    unexpected=unexpected,
                    hint="Give the optimizer the same parameters, in the same groups, "
                    f"{_OR_THE_REST}",
                )
        named = zip(chain(*self._names), self._parameters(), strict=True)
        check_shapes(
            self._optimizer, [(n, p, saved["state"].get(n)) for n, p in named], "The optimizer"
        )

    def _check_options(self, saved: OptimizerState, kind: str) -> None:
        """Raise unless each option of the saved groups is one of this optimizer's.

        Of an imported state the class is not known, and the names of its options tell it: an SGD
        has no betas.
        """
        of_all = {"params", "param_names", "initial_lr"}  # the last is a scheduler's
        known = of_all.union(*self._optimizer.param_groups, self._optimizer.defaults)
        unknown = sorted({key for group in saved["param_groups"] for key in group} - known)
        if unknown:
            raise StateMismatchError(
                f"The imported state is not that of an optimizer {kind}: it has the options "
                f"{', '.join(unknown)}.",
                hint=f"Build the optimizer that was trained with, {_OR_THE_REST}",
            )

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _of_others(self) -> set[str]:
        """Return the names of parameters whose state other ranks hold; of none, in most cases."""
        if not is_zero_redundancy(self._optimizer):
            return set()
        stepped: Any = self._optimizer
        here = {id(p) for group in stepped.optim.param_groups for p in group["params"]}
        named = zip(chain(*self._names), self._parameters(), strict=True)
        return {name for name, parameter in named if id(parameter) not in here}

    @uncollected
    def memory(self, saved: OptimizerState) -> dict[TensorKey, torch.Tensor | Share]:
        """Return tensors that may take the bytes of stored ones, by the key of these.

        That is the live state, or new memory on the device of the parameter; of what is sharded the
        part on this rank. What another rank steps is read nowhere.
        """
        states, state = saved["state"], self._optimizer.state
        if is_zero_redundancy(self._optimizer):
            return memory_for_none(states.get(name) for name in self._of_others())
        pairs = zip(chain(*self._names), self._parameters(), strict=True)
        return memory_for((p, state.get(p) or {}, states.get(name)) for name, p in pairs)

    @uncollected
    def apply(
        self, saved: OptimizerState, layouts: SavedLayouts, *, keep_options: bool = False
    ) -> None:
        """Load what `check` has accepted, in place.

        Args:
            saved: What `take_optimizer` gave.
            layouts: How the parameters lay in memory when they were saved.
            keep_options: Whether the live groups keep their own options (learning rate, betas, …).
        """
        numbers = {name: number for number, name in enumerate(chain(*self._names))}
        ends = accumulate(map(len, self._names))
        groups = [
            {
                **{key: value for key, value in group.items() if key != "param_names"},
                **{key: now[key] for key in now if key == "param_names" or keep_options},
                # For every tensor torch looks its parameter up here; a list it would go through.
                "params": range(end - len(here), end),
            }
            for here, end, now, group in zip(
                self._names, ends, self._optimizer.param_groups, saved["param_groups"], strict=True
            )
        ]
        elsewhere = self._of_others()
        state = {
            numbers.get(name, name): {} if name in elsewhere else values
            for name, values in saved["state"].items()
        }
        rest = {k: v for k, v in saved.items() if k not in ("class", "param_groups", "state")}
        plain = {"state": state, "param_groups": groups, **rest}
        apply_exactly(self._optimizer, plain, layouts)


def _live_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    known = parameter_names(model)
    return [
        [known.get(id(p)) or f"param_groups[{g}][{i}]" for i, p in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def _names_by_index(
    optimizer: torch.optim.Optimizer, plain: Mapping[str, Any], model: nn.Module
) -> dict[Any, str]:
    live = _live_names(optimizer, model)
    return {
        index: name
        for names, group in zip(live, plain["param_groups"], strict=True)
        for index, name in zip(group["params"], names, strict=True)
    }


def _check_keys(
    optimizer: torch.optim.Optimizer, plain: Mapping[str, Any], names: Mapping[Any, str]
) -> None:
    """Raise `UnsupportedStateError` where something is under a key that would not come back."""
    strange = [key for key in plain["state"] if key not in names]
    if is_torchs(optimizer):  # which puts parameters under their numbers, beside all other keys
        live: Iterable[Any] = optimizer.state
        strange += [key for key in live if not isinstance(key, torch.Tensor)]
    taken = {*names, *names.values()} if strange else set()
    lost = [("state", key) for key in strange if type(key) not in (int, str) or key in taken]
    options = (key for group in plain["param_groups"] for key in group)
    lost += [("an option", key) for key in options if type(key) is not str]
    lost += [("a value", key) for key in plain if type(key) is not str or key == "class"]
    for what, key in lost:
        raise UnsupportedStateError(
            f"The optimizer, a {type(optimizer).__name__}, keeps {what} under {key!r}, which would "
            "not come back: it is no text, or what something else is called.",
            hint="Keep it under a text of its own, such as 'shared'.",
        )


def class_name(value: Any) -> str:
    """Return the class of an optimizer, or of anything else; of what is inside a wrapper.

    An optimizer that steps others has theirs behind its own: ``Lookahead(SGD)``.
    """
    inner = bare_object(value)
    if is_zero_redundancy(inner):  # the run may be resumed without the sharding
        return type(inner.optim).__name__
    name = type(inner).__name__
    if not hasattr(inner, "param_groups"):  # a scheduler, say: it only refers to an optimizer
        return name
    held = (bare_optimizer(other) for other in getattr(inner, "__dict__", {}).values())
    others = sorted(type(o).__name__ for o in held if isinstance(o, torch.optim.Optimizer))
    return f"{name}({', '.join(others)})" if others else name


_HAS_NO_HISTORY = {torch.Tensor, bool, int, float, str, type(None)}


def _detached(values: Any) -> Any:
    if not isinstance(values, Mapping) or _HAS_NO_HISTORY.issuperset(map(type, values.values())):
        return values
    return {k: detached(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
