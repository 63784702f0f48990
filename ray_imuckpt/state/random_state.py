"""The state of random generators: those of this process, and those that a user passes.

Of this process: Python's, NumPy's legacy one, torch's, CUDA's. To be passed by keyword:
``random.Random``, ``numpy.random.Generator`` (and ``RandomState``), ``torch.Generator``.

A rank that did not exist when the checkpoint was made (a larger gang) has no state to come back
to. Its generators are seeded anew by a rule that depends on the checkpoint and the rank alone:
``seed = XXH3-128(rank 0's torch CPU state || rank as 8 bytes, little endian)``, of which Python
takes all 128 bits, NumPy four words of 32 bits, and torch the low 63 bits. No two ranks get the
same. A generator passed in ``per_rank`` gets a seed of its own: its name in ``per_rank``, in UTF-8,
is hashed too, behind the rank.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ray_imuckpt.encoding.chunks import checksum
from ray_imuckpt.errors import CorruptCheckpointError, StateMismatchError


def take_random() -> dict[str, Any]:
    """Return the generators' states, to be stored as a tree; CUDA's are copied to the host."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - a tuple in older checkpoints
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def check_random(state: dict[str, Any], rank: int) -> None:
    """Check that NumPy's generator is of the algorithm that was saved.

    Raises:
        StateMismatchError: It is not.
        CorruptCheckpointError: What was saved names none.
    """
    live = np.random.get_state(legacy=False)["bit_generator"]  # noqa: NPY002
    saved = state["numpy"]
    try:
        algorithm = saved["bit_generator"] if isinstance(saved, dict) else saved[0]
    except LookupError as error:
        raise CorruptCheckpointError(
            "The state of NumPy's generator does not name its algorithm.", rank=rank
        ) from error
    if algorithm != live:
        raise StateMismatchError(
            f"NumPy draws from {live} here, and drew from {algorithm} when it was saved.",
            rank=rank,
            hint=f"Call np.random.set_bit_generator(np.random.{algorithm}()) before start().",
        )


def missing_cuda(state: dict[str, Any]) -> int:
    """Return how many CUDA devices had a state and are not here."""
    return max(0, len(state.get("cuda", ())) - torch.cuda.device_count())


def apply_random(state: dict[str, Any]) -> None:
    """Apply the generators' states, as far as their devices are here.

    Raises:
        RuntimeError, ValueError, TypeError: From the generator that refused its state.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    saved = state.get("cuda", [])
    present = torch.cuda.device_count() if saved and torch.cuda.is_available() else 0
    for device, cuda in enumerate(saved[:present]):
        torch.cuda.set_rng_state(cuda, device)


def seed_new_rank(rank_zero: dict[str, Any], rank: int) -> None:
    """Seed the generators of a rank that the checkpoint does not know, by the rule above."""
    seed = _seed(rank_zero, rank, "")
    random.seed(seed)
    np.random.seed(_words(seed))  # noqa: NPY002
    torch.manual_seed(seed & _LOW)


def seed_generator(value: Any, rank_zero: dict[str, Any], rank: int, name: str) -> None:
    """Seed a generator that such a rank passed in ``per_rank``, in place."""
    seed = _seed(rank_zero, rank, name)
    if isinstance(value, np.random.Generator):
        seeded = np.random.Generator(type(value.bit_generator)(_words(seed)))
        apply_generator(value, take_generator(seeded))
    elif isinstance(value, np.random.RandomState):
        algorithm = value.get_state(legacy=False)["bit_generator"]
        words: Any = _words(seed)
        if algorithm != "MT19937":
            words = getattr(np.random, algorithm)(words)
        value.set_state(np.random.RandomState(words).get_state(legacy=False))
    elif isinstance(value, random.Random):
        value.seed(seed)
    else:
        value.manual_seed(seed & _LOW)


def _seed(rank_zero: dict[str, Any], rank: int, name: str) -> int:
    text = rank_zero["torch"].numpy().tobytes() + rank.to_bytes(8, "little") + name.encode()
    return int(checksum([text]), 16)


def _words(seed: int) -> list[int]:
    return [(seed >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96)]


_LOW = 2**63 - 1
_TRUE_RANDOM = random.SystemRandom  # which has no state
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def is_generator(value: Any) -> bool:
    """Return whether it is a generator of random numbers that a user passes."""
    return isinstance(value, _GENERATORS) and not isinstance(value, _TRUE_RANDOM)


def take_generator(value: Any) -> dict[str, Any]:
    """Return the state of a generator, with the name of its algorithm."""
    if isinstance(value, np.random.Generator):
        state: Any = value.bit_generator.state
        sequence = value.bit_generator.seed_seq
        if type(sequence) is np.random.SeedSequence:  # else it is the user's own
            return {"generator": _algorithm(value), "state": state, "seeds": sequence.state}
    elif isinstance(value, random.Random):
        state = value.getstate()
    elif isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)  # a tuple in older checkpoints
    else:
        state = value.get_state()
    return {"generator": _algorithm(value), "state": state}


def check_generator(value: Any, state: Any, name: str) -> None:
    """Raise `StateMismatchError` unless `state` is that of such a generator."""
    saved = state.get("generator") if isinstance(state, dict) else type(state).__name__
    if saved != _algorithm(value):
        raise StateMismatchError(
            f"{name!r} is a generator {_algorithm(value)} here, and was saved as {saved}.",
            hint="Pass what was passed when it was saved.",
        )


def apply_generator(value: Any, state: dict[str, Any]) -> None:
    """Apply the state of a generator, in place."""
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state["state"]
        if "seeds" in state:  # not in older checkpoints
            _apply_seeds(value.bit_generator, state["seeds"])
    elif isinstance(value, random.Random):
        value.setstate(state["state"])
    else:
        value.set_state(state["state"])


def _apply_seeds(bits: Any, saved: dict[str, Any]) -> None:
    """Have ``Generator.spawn`` go on where it was: its children are counted beside the state."""
    now = getattr(bits.seed_seq, "state", saved)  # where it is the user's own, it stays
    if now == saved:
        return
    if isinstance(bits.__getstate__(), tuple):  # NumPy 2
        bits.__setstate__((bits.state, np.random.SeedSequence(**saved)))
        return
    spawned = "n_children_spawned"
    if {**now, spawned: 0} == {**saved, spawned: 0} and now[spawned] < saved[spawned]:
        bits.seed_seq.spawn(saved[spawned] - now[spawned])
    elif saved[spawned]:
        raise StateMismatchError(
            f"A generator had spawned {saved[spawned]} others, from another seed than here.",
            hint="Build it with the same seed, or install NumPy 2, which can change it.",
        )


def _algorithm(value: Any) -> str:
    if isinstance(value, np.random.Generator):
        return f"numpy.{type(value.bit_generator).__name__}"
    if isinstance(value, torch.Generator):
        return f"torch.{value.device.type}"
    return "python" if isinstance(value, random.Random) else "numpy.RandomState"
