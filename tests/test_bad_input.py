"""Bad input gets a clear error and loses nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import small_model
from ray_imuckpt import (
    Checkpointer,
    SaveFailedError,
    UnsupportedStateError,
)


def everything(directory: Path) -> dict[str, bytes]:
    """All files below a directory with their bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("epoch", "error"),
    [(-1, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError), (None, TypeError),
     (np.float64(2), TypeError)],
)  # fmt: skip
def test_an_epoch_that_is_none(trained: Any, epoch: Any, error: type[Exception]) -> None:
    """Whatever is no whole number is refused, and nothing is written."""
    directory = trained(1)
    before = everything(directory)
    with pytest.raises(error, match=re.escape(f"epoch={epoch!r}".removeprefix("epoch=-"))):
        Checkpointer(directory).checkpoint(epoch, model=small_model())
    assert everything(directory) == before


def test_numpy_integers_are_epochs(tmp_path: Path) -> None:
    """An epoch may come out of an array."""
    epoch: Any = np.int64(3)  # no int to a type checker
    Checkpointer(tmp_path).checkpoint(epoch, model=small_model())
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [3]


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "2"])
def test_a_save_every_that_is_none(value: Any) -> None:
    """It is refused at construction, not after the first epochs."""
    with pytest.raises((ValueError, TypeError), match="save_every"):
        Checkpointer(save_every=value)


@pytest.mark.parametrize("value", ["lats", "", True, 1.0, -3, [1]])
def test_continue_from_is_checked_at_construction(value: Any) -> None:
    """A word that is misspelt must not cost a run its start."""
    with pytest.raises((ValueError, TypeError), match="continue_from"):
        Checkpointer(continue_from=value)
    with pytest.raises(ValueError, match="'last'.*'none'"):
        Checkpointer(continue_from="lats")


class Custom:
    """No state_dict."""


@pytest.mark.parametrize(
    ("keywords", "path"),
    [
        ({"hook": lambda: 1}, "other.hook"),
        ({"file": open(os.devnull)}, "other.file"),  # noqa: SIM115
        ({"config": {"deep": [1, Custom()]}}, "other.config['deep'][1]"),
        ({"log": [{"x": Custom()}]}, "log[0]['x']"),
        ({"metrics": {"loss": Custom()}}, "metrics['loss']"),
        ({"per_rank": {"sampler": Custom()}}, "per_rank['sampler']"),
        ({"sparse": torch.ones(2, 2).to_sparse()}, "other.sparse"),
        ({"meta": torch.ones(2, device="meta")}, "other.meta"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path_before_a_byte_is_written(
    tmp_path: Path, keywords: dict[str, Any], path: str
) -> None:
    """The message leads to the value, however deep it lies."""
    with pytest.raises(UnsupportedStateError) as caught:
        Checkpointer(tmp_path / "run").checkpoint(1, model=small_model(), **keywords)
    assert path in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert not (tmp_path / "run").exists()


def test_a_lazy_or_meta_model_is_refused_with_the_name(tmp_path: Path) -> None:
    """A parameter without memory holds nothing to save."""
    for model in (nn.Sequential(nn.LazyLinear(3)), nn.Sequential(nn.Linear(2, 2, device="meta"))):
        with pytest.raises(UnsupportedStateError, match="0.weight"):
            Checkpointer(tmp_path / "run").checkpoint(1, model=model)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The error says where, and leaves the model as it was."""
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SaveFailedError) as caught:
        Checkpointer(tmp_path / "file" / "run", blocking=True).checkpoint(3, model=small_model())
    assert f"{tmp_path}/file/run/checkpoint=3" in str(caught.value)
    assert caught.value.epoch == 3
    with pytest.raises(SaveFailedError, match="/proc/nowhere"):
        Checkpointer("/proc/nowhere", blocking=True).checkpoint(1, model=small_model())


def test_arguments_of_the_wrong_type(tmp_path: Path) -> None:
    """Each is named, with what was got and what is wanted."""
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="model is a NoneType"):
        checkpointer.start(None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="optimizer is a list"):
        checkpointer.start(small_model(), [1])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="metrics"):
        checkpointer.checkpoint(1, model=small_model(), metrics=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metrics\['loss'\].*\(2,\)"):
        checkpointer.checkpoint(1, model=small_model(), metrics={"loss": torch.ones(2)})
    for options, told in (("key", "a str; a dict"), ({1: "key"}, "the key 1")):
        with pytest.raises(TypeError, match=f"storage_options .* {told}"):
            Checkpointer(tmp_path, storage_options=options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="epoch, a path"):
        checkpointer.read(object())


# ---------------------------------------------------------------------- damaged manifests
