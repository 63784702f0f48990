"""``checkpoint(..., step=)``: kept beside the epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import small_model
from ray_imuckpt import Checkpointer


@pytest.mark.parametrize("step", [None, 0, 1200, np.int64(7), 2**53])
def test_the_step_is_kept_beside_the_epoch(tmp_path: Path, step: Any) -> None:
    """As the int that it is; and that there was none is kept as well."""
    Checkpointer(tmp_path, blocking=True).checkpoint(3, model=small_model(), step=step)
    loaded = Checkpointer(tmp_path).read(3)
    assert (loaded.epoch, loaded.step) == (3, step)
    assert type(loaded.step) in (int, type(None))


@pytest.mark.parametrize("step", [True, "5", 5.0, [5]])
def test_a_step_that_is_no_integer_is_refused(tmp_path: Path, step: Any) -> None:
    """By name, before anything is written."""
    with pytest.raises(TypeError, match=r"step=.* an int is wanted"):
        Checkpointer(tmp_path).checkpoint(1, model=small_model(), step=step)
    assert not list(tmp_path.glob("checkpoint=*"))


@pytest.mark.parametrize(
    ("epoch", "step", "why"),
    [(1, -1, "step=-1 is negative; steps count"), (1, 2**53 + 1, "step=.* too large"),
     (2**53 + 1, None, "epoch=.* too large")],
)  # fmt: skip
def test_numbers_that_no_reader_would_take_are_refused(
    tmp_path: Path, epoch: int, step: int | None, why: str
) -> None:
    """At the call, not when the checkpoint is read."""
    with pytest.raises(ValueError, match=why):
        Checkpointer(tmp_path).checkpoint(epoch, model=small_model(), step=step)
    assert not list(tmp_path.glob("checkpoint=*"))
