"""`Checkpointer.restore_random_state`: what was drawn since `start` is undone."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model
from ray_imuckpt import Checkpointer, ImuckptError


def draws() -> list[float]:
    """Return a number of each generator of this process."""
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def test_random_numbers_drawn_since_start_are_drawn_again(tmp_path: Path) -> None:
    """However much was drawn, and as often as it is called; it needs no file any more."""
    model = small_model()
    with Checkpointer(tmp_path) as saving:
        saving.checkpoint(1, model=model)
    expected = draws()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.start(model)
    assert draws() == expected
    for path in (tmp_path / "checkpoint=1").iterdir():
        path.unlink()
    for _ in range(2):
        draws()
        checkpointer.restore_random_state()
        assert draws() == expected


def test_from_scratch_there_is_nothing_to_put_back(tmp_path: Path) -> None:
    """A run that begins draws on."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.start(small_model())
    before = torch.get_rng_state()
    checkpointer.restore_random_state()
    assert torch.equal(torch.get_rng_state(), before)


def test_before_start_it_is_an_error(tmp_path: Path) -> None:
    """Also in a copy that was sent to another process, which has not started."""
    model = small_model()
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(ImuckptError, match=r"Call start\(\) first"):
        checkpointer.restore_random_state()
    checkpointer.start(model)
    with pytest.raises(ImuckptError, match=r"Call start\(\) first"):
        pickle.loads(pickle.dumps(checkpointer)).restore_random_state()


def test_a_rank_that_did_not_save_is_seeded_as_by_start(tmp_path: Path) -> None:
    """Its numbers are those that `start` gave it, by a rule of the rank and the checkpoint."""
    with Checkpointer(tmp_path) as saving:
        saving.checkpoint(1, model=small_model())
    saved = Checkpointer(tmp_path).read(1).saved_random
    new = saved._replace(here=None, rank=1)
    new.apply()
    first = draws()
    new.apply()
    assert draws() == first
    new._replace(rank=2).apply()
    assert draws() != first
