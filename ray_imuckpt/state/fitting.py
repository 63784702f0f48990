"""The layout of an optimizer's state: is it torch's, and does it fit the live optimizer?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import TensorInfo
from ray_imuckpt.errors import StateMismatchError, UnsupportedStateError
from ray_imuckpt.state.sharding import is_zero_redundancy
from ray_imuckpt.state.wrappers import bare_optimizer


def is_torchs(optimizer: Any) -> bool:
    """Return whether the optimizer gives its state as ``torch.optim.Optimizer`` does."""
    inner = bare_optimizer(optimizer)
    if not isinstance(inner, torch.optim.Optimizer):
        return False
    return is_zero_redundancy(inner) or type(inner).state_dict is torch.optim.Optimizer.state_dict


def has_layout(plain: Any) -> bool:
    """Return whether a state is laid out as ``torch.optim.Optimizer.state_dict`` lays it out."""
    if not isinstance(plain, Mapping) or not isinstance(plain.get("state"), Mapping):
        return False
    groups = plain.get("param_groups")
    return isinstance(groups, (list, tuple)) and all(
        isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple))
        for group in groups
    )


def check_layout(optimizer: Any, plain: Any) -> None:
    """Raise `UnsupportedStateError` unless `plain` speaks of the parameters of `optimizer`."""
    if has_layout(plain) and _sizes(plain["param_groups"]) == _sizes(optimizer.param_groups):
        return
    kind = type(bare_optimizer(optimizer)).__name__
    raise UnsupportedStateError(
        f"optimizer is a {kind}, whose state_dict() is not laid out as that of torch.optim: it "
        "cannot be stored by the names of the parameters.",
        hint=f"Pass it by keyword, to start() and to checkpoint(): {kind.lower()}=optimizer.",
    )


def check_early(optimizer: Any) -> None:
    """Raise what `check_layout` would raise at the first save, as far as it can be told before."""
    if optimizer is None or is_torchs(optimizer):
        return
    inner = bare_optimizer(optimizer)
    try:
        plain = inner.state_dict()
    except Exception:  # noqa: BLE001 - user code; it may have no state to give before a step
        return
    check_layout(inner, plain)


def check_plain(optimizer: torch.optim.Optimizer, plain: Any, name: str) -> None:
    """Raise unless `plain`, an optimizer's own ``state_dict``, has its groups and their sizes.

    Raises:
        StateMismatchError: It says what differs.
    """
    if not has_layout(plain):
        raise StateMismatchError(
            f"{name!r} is an optimizer here, and what was saved has no parameter groups.",
            hint="Pass what was passed when it was saved.",
        )
    here, saved = _sizes(optimizer.param_groups), _sizes(plain["param_groups"])
    if here != saved:
        raise StateMismatchError(
            f"The optimizer {name!r} had {len(saved)} parameter group(s) of {saved} parameters "
            f"when it was saved, and has {len(here)} of {here} here.",
            hint="Build the optimizer with the same groups.",
        )
    check_shapes(
        optimizer,
        [
            (f"{name}.param_groups[{g}][{i}]", parameter, plain["state"].get(index))
            for g, (now, group) in enumerate(
                zip(optimizer.param_groups, plain["param_groups"], strict=True)
            )
            for i, (parameter, index) in enumerate(zip(now["params"], group["params"], strict=True))
        ],
        f"The optimizer {name!r}",
    )


# What torch's own optimizers keep in the shape of the parameter, unless it is a scalar. A foreign
# one may keep under these names what it likes.
_OF_PARAMETERS_SHAPE = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum", "square_avg",
    "grad_avg", "acc_delta", "prev", "step_size", "ax",
}  # fmt: skip


def check_shapes(
    optimizer: Any, states: Iterable[tuple[str, torch.Tensor, Any]], what: str
) -> None:
    """Raise unless the state of each parameter (its name, itself, what was saved) has its shape."""
    inner = bare_optimizer(optimizer)
    inner = inner.optim if is_zero_redundancy(inner) else inner
    if not type(inner).__module__.startswith("torch.optim."):
        return
    wrong = {}
    for name, parameter, values in states:
        if nn.parameter.is_lazy(parameter):  # it gets its shape from the checkpoint
            continue
        shape = tuple(parameter.shape)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if key in _OF_PARAMETERS_SHAPE and isinstance(value, (TensorInfo, torch.Tensor)):
                saved = tuple(value.shape)
                if saved and saved != shape:
                    wrong[f"{name}.{key}"] = list(saved), list(shape)
    if wrong:
        raise StateMismatchError(
            f"{what} has parameters of another shape than when it was saved.",
            wrong_shape=wrong,
            hint="Build the parameters as they were when it was saved.",
        )


def _sizes(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return how many parameters each group has."""
    return [len(group["params"]) for group in groups]
