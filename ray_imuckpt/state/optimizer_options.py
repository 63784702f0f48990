"""The options of an optimizer's groups: which of them a restore has set otherwise than built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ray_imuckpt.state.wrappers import bare_optimizer

Options = dict[str, Any]
"""Of one group of parameters: the name of an option to its value, a plain one."""

_PLAIN = (bool, int, float, str, type(None))


def options_of(optimizer: torch.optim.Optimizer | None) -> list[Options]:
    """Return the options that were chosen, by group; not those that a schedule moves meanwhile.

    A scheduler of torch's notes the learning rate that was chosen as ``initial_lr``, and one that
    moves momenta their bounds. Without one it is ``lr`` that was chosen.
    """
    if optimizer is None:
        return []
    return [_chosen(group) for group in bare_optimizer(optimizer).param_groups]


def _chosen(group: dict[str, Any]) -> Options:
    moved = {"params", "param_names"}
    if "initial_lr" in group:
        moved.add("lr")
    if "max_momentum" in group:
        moved |= {"momentum", "betas"}
    values = {name: _plain(value) for name, value in group.items() if name not in moved}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Return whether it is a value, or a tuple of values, that can be compared and shown."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(part, _PLAIN) for part in parts)


def _plain(value: Any) -> Any:
    """Return the number that a tensor of one element holds, as a rate for CUDA graphs does."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def changed(built: Sequence[Options], restored: Sequence[Options]) -> list[str]:
    """Return in words which options are otherwise than built, such as ``lr 0.1 as saved, ...``.

    Args:
        built: The options of each group before a restore.
        restored: The same after it.
    """
    if built == restored:
        return []
    return [
        f"{name}{f' of group {number}' * (len(built) > 1)} {after[name]} as saved, "
        f"{before[name]} as built"
        for number, (before, after) in enumerate(zip(built, restored, strict=False))
        for name in before
        if name in after and after[name] != before[name]
    ]
