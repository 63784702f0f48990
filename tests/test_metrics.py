"""The metrics of a manifest, read with and without torch."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt.encoding import tree
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.repository import metrics
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage import open_storage

PLAIN: dict[str, Any] = {
    "loss": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "less": -math.inf,
    "steps": 3,
    "best": True,
    "none": None,
    "stage": "late",
}
GOLDEN = Path(__file__).parent / "golden" / "v1"


def manifest(stored: Any) -> Manifest:
    """A manifest that states these metrics."""
    return replace(Catalog(open_storage(str(GOLDEN))).manifest(1), metrics=stored)


def test_plain_numbers_are_what_the_tree_says_without_asking_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are not finite, too."""
    stored = tree.encode(PLAIN, {}, "metrics")
    expected = tree.decode_dict(stored, {})
    monkeypatch.setattr(tree, "decode_dict", pytest.fail)
    assert repr(metrics.metrics_of(manifest(stored))) == repr(expected) == repr(PLAIN)


@pytest.mark.parametrize(
    "value",
    [{"$": 1, "loss": 2.0}, {"lists": [1, 2]}, {"of": {"loss": 1.0}}, {"day": date(2026, 1, 2)}],
)
def test_whatever_else_is_read_by_the_tree(value: dict[str, Any]) -> None:
    """Also names that are the tree's own."""
    assert metrics.metrics_of(manifest(tree.encode(value, {}, "metrics"))) == value


@pytest.mark.parametrize("bits", ["7ff8", "zz", 7, None, "7ff8000000000000" * 2])
def test_damage_is_told_by_the_tree(bits: Any) -> None:
    """Nothing is made of bits that no number has."""
    with pytest.raises(CorruptCheckpointError):
        metrics.metrics_of(manifest({"loss": {"$": "float", "v": bits}}))


def test_a_number_is_one_that_can_be_compared() -> None:
    """Not a word, not what is no number; a bool counts as 0 or 1."""
    stored = manifest(tree.encode(PLAIN, {}, "metrics"))
    found = {name: metrics.number_of(stored, name) for name in [*PLAIN, "missing"]}
    assert {name for name, number in found.items() if number is None} == {
        *("nan", "none", "stage", "missing")
    }
    assert found["inf"] == math.inf
