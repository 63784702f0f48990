"""The state of this process's random generators: Python, NumPy (the legacy one), torch, CUDA.

A rank that did not exist when the checkpoint was made (a larger gang) has no state to come back
to. Its generators are seeded anew by a rule that depends on the checkpoint and the rank alone:
``seed = XXH3-128(rank 0's torch CPU state || rank as 8 bytes, little endian)``, of which Python
takes all 128 bits, NumPy four words of 32 bits, and torch the low 63 bits. No two ranks get the
same.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ray_imuckpt.chunks import checksum


def take_random() -> dict[str, Any]:
    """The generators' states, to be stored as a tree."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, keys, position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def apply_random(state: dict[str, Any]) -> None:
    """Put the generators back.

    Raises:
        RuntimeError, ValueError, TypeError: From the generator that refused its state.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, cuda in enumerate(state.get("cuda", [])):
        if torch.cuda.is_available() and device < torch.cuda.device_count():
            torch.cuda.set_rng_state(cuda, device)


def seed_new_rank(rank_zero: dict[str, Any], rank: int) -> None:
    """Seed the generators of a rank that the checkpoint does not know, by the rule above."""
    told = rank_zero["torch"].numpy().tobytes() + rank.to_bytes(8, "little")
    seed = int(checksum([told]), 16)
    random.seed(seed)
    np.random.seed([(seed >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96)])  # noqa: NPY002
    torch.manual_seed(seed & (2**63 - 1))
