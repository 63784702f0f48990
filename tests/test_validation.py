"""`checkpoint(validation=)` in a script. In Ray Train: docs/recipes/validate-and-predict.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train import ValidationTaskConfig

from conftest import small_model
from ray_imuckpt import Checkpointer


@pytest.mark.parametrize("validation", [True, ValidationTaskConfig(fn_kwargs={"a": 1})])
def test_in_a_script_it_changes_nothing(
    tmp_path: Path, validation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint is the same, and does not hold it; which is told once."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.checkpoint(1, model=small_model(), validation=validation)
        checkpointer.checkpoint(2, model=small_model(), validation=validation)
    told = [r.getMessage() for r in caplog.records if "validation=" in r.getMessage()]
    assert told == [
        "validation= changes nothing here (script): only Ray Train validates checkpoints."
    ]
    assert checkpointer.read(1).other == {}


@pytest.mark.parametrize("validation", [None, 1, "yes", {"fn_kwargs": {}}])
def test_what_ray_does_not_take_is_refused(tmp_path: Path, validation: Any) -> None:
    """Before anything is written, also where Ray is not asked."""
    with pytest.raises(TypeError, match="ValidationTaskConfig is wanted"):
        Checkpointer(tmp_path).checkpoint(1, model=small_model(), validation=validation)
    assert not list(tmp_path.iterdir())
