"""Live tensors that take what was saved of them: which cannot, and which a module left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ray_imuckpt.encoding.tensors import are_tied, flat, is_plain
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.state.model import apart
from ray_imuckpt.state.sharding import is_sharded
from ray_imuckpt.units import listed


def unwritable(value: torch.Tensor) -> str | None:
    """Return why torch will refuse to ``copy_`` into this tensor, ``None`` if it will not."""
    if (not is_plain(value) and nn.parameter.is_lazy(value)) or value.layout is not torch.strided:
        return None
    if value.is_inference() and not torch.is_inference_mode_enabled():
        return "was made under torch.inference_mode()"
    if 0 in value.stride() and not is_sharded(value):
        strides = zip(value.stride(), value.shape, strict=True)
        if any(not stride and size > 1 for stride, size in strides):
            return "is expanded, its elements share memory"
    return None


def is_lossy(saved: torch.dtype, live: torch.dtype) -> bool:
    """Return whether a ``copy_`` drops more than digits: fractions, or imaginary parts.

    Whole numbers go into any dtype: masks that were bytes are booleans in newer models.
    """
    if saved == live or not (saved.is_floating_point or saved.is_complex):
        return False
    return not torch.can_cast(saved, live)


def differ(one: Any, other: Any) -> bool:
    """Return whether two values that were saved are tensors of different bytes, as far as known."""
    if not (is_plain(one) and is_plain(other)) or one.is_meta or are_tied(one, other):
        return False
    if one.dtype is not other.dtype or one.shape != other.shape:
        return True
    bits = (flat(value.contiguous()) for value in (one, other.to(one.device)))
    return not torch.equal(*bits)


def put_left(
    module: nn.Module, live: Mapping[str, Any], state: Mapping[str, Any], left: Iterable[str]
) -> None:
    """Put into place what ``load_state_dict`` did not know of what ``state_dict`` gives.

    A hook may rename while a module is saved, and none while it is loaded.

    Args:
        module: The module, which has loaded.
        live: What its ``state_dict`` gave before.
        state: What it was given to load.
        left: The keys that it did not expect.

    Raises:
        StateMismatchError: What ``state_dict`` gives are copies, made anew each time.
    """
    known = [key for key in left if isinstance(live.get(key), torch.Tensor) and key in state]
    again = module.state_dict(keep_vars=True) if known else {}
    lost = [k for k in known if k not in again or not are_tied(live[k], again[k], apart)]
    if lost:
        raise StateMismatchError(
            f"state_dict() of this {type(module).__name__} gives copies under names that its "
            f"load_state_dict() does not know: {listed(lost)}.",
            hint="Give it a load_state_dict, or a hook before it, that takes these names.",
        )
    with torch.no_grad():
        for key in known:
            if state[key] is not live[key]:
                live[key].copy_(state[key])
