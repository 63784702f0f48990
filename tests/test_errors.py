"""Errors survive the way to another process and tell the same there."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import ray_imuckpt
from conftest import small_model
from ray_imuckpt import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    SaveFailedError,
    StateMismatchError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedStateError,
    errors,
)
from ray_imuckpt.errors import from_wire, to_wire

FACTS: dict[str, Any] = {
    "url": "s3://b/run/checkpoint=7",
    "epoch": 7,
    "rank": 3,
    "hint": "Do this.",
}
ERRORS = [
    cls("It broke.", **FACTS)
    for cls in (
        ImuckptError,
        CheckpointNotFoundError,
        CorruptCheckpointError,
        UnsupportedFormatError,
        SaveFailedError,
        UnsupportedStateError,
    )
] + [
    StateMismatchError(
        "It differs.", missing=["a"], unexpected=["b"], wrong_shape={"c": ([1], [2, 3])}, **FACTS
    )
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_tells_the_same_after_pickling_and_on_the_wire(error: ImuckptError) -> None:
    """Class, message and all attributes, through pickle, cloudpickle and JSON."""
    copies = [
        pickle.loads(pickle.dumps(error)),
        cloudpickle.loads(cloudpickle.dumps(error)),
        from_wire(json.loads(json.dumps(to_wire(error)))),
    ]
    for copy in copies:
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_message_says_where_and_what_to_do(error: ImuckptError) -> None:
    """URL, epoch, rank and hint are in the text."""
    for fact in ("s3://b/run/checkpoint=7", "epoch=7", "rank=3", "Do this."):
        assert fact in str(error)


def test_standard_families() -> None:
    """Who catches FileNotFoundError, ValueError or TypeError catches ours too."""
    assert issubclass(CheckpointNotFoundError, FileNotFoundError)
    assert issubclass(StateMismatchError, ValueError)
    assert issubclass(UnsupportedStateError, TypeError)


def test_foreign_errors_become_ours_in_words() -> None:
    """An OSError arrives as a StorageError that quotes it, a ValueError as itself."""
    copy = from_wire(to_wire(OSError(28, "No space left on device")))
    assert type(copy) is StorageError
    assert copy.hint
    assert "OSError" in str(copy)
    assert "No space left" in str(copy)
    assert type(from_wire(to_wire(ValueError("no")))) is ValueError


def test_the_guide_says_of_every_error_what_to_do() -> None:
    """Each class of the tree has a row in docs/guide.md."""
    guide = Path(__file__).parent.parent.joinpath("docs", "guide.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in guide.splitlines() if line.startswith("| `")]
    advice = {row[1].strip(" `"): row[4].strip() for row in rows if len(row) == 6}
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in tree:
        if issubclass(kind, ImuckptError):
            assert advice[kind.__name__], kind


class Unreadable(os.PathLike[str]):
    """A path that fails as no path should."""

    def __fspath__(self) -> str:
        raise RuntimeError("as the test wants")


def test_a_foreign_error_of_a_call_by_keywords_alone_becomes_ours() -> None:
    """Where no positional argument says what a call is about, the error comes without a URL."""
    with pytest.raises(ImuckptError, match="RuntimeError: as the test wants"):
        ray_imuckpt.load(model=small_model(), checkpoint=Unreadable())
