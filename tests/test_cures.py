"""What cannot be stored is refused with the expression that can: it is tried as it is told."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import types
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pandas as pd
import pydantic
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ray_imuckpt import Checkpointer, UnsupportedStateError
from ray_imuckpt.encoding import tree


@dataclasses.dataclass
class Config:
    """Settings of a training."""

    rate: float = 0.1


@attrs.define
class Defined:
    rate: float = 0.1


class Model(pydantic.BaseModel):
    rate: float = 0.1


class Pretrained:
    """As the configurations of Hugging Face's models."""

    def to_dict(self) -> dict[str, Any]:
        return {"rate": 0.1}


class Foreign:
    """As the arrays of other libraries."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.zeros(3, dtype)


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024

CURES: list[tuple[Any, str]] = [
    (argparse.Namespace(rate=0.1), "vars(args)"),
    (types.SimpleNamespace(rate=0.1), "vars(args)"),
    (Config(), "dataclasses.asdict(args)"),
    (Defined(), "attrs.asdict(args)"),
    (Model(), "args.model_dump()"),
    (Pretrained(), "args.to_dict()"),
    (Path("data"), "str(args)"),
    (uuid.UUID(int=1), "str(args)"),
    (Decimal("0.1"), "str(args)"),
    (re.compile("a+"), "args.pattern"),
    (pd.DataFrame({"loss": [1.0, 2.0]}), 'args.to_dict("list")'),
    (pd.Series([1.0]), "args.tolist()"),
    (pd.Timestamp("2026-11-28"), "args.to_pydatetime()"),
    (Foreign(), "numpy.asarray(args)"),
    (Point(1, 2), "args._asdict()"),
    (Point(1, 2), "tuple(args)"),
    (collections.defaultdict(list, a=[1]), "dict(args)"),
    (types.MappingProxyType({"a": 1}), "dict(args)"),
    (range(3), "list(args)"),
    ({"a": 1}.keys(), "list(args)"),
    (nn.Linear(1, 1), "args.state_dict()"),
]


@pytest.mark.parametrize(("value", "cure"), CURES, ids=[cure for _, cure in CURES])
def test_the_cure_that_is_named_can_be_stored(value: Any, cure: str) -> None:
    """Whoever copies the expression from the error has something that is stored."""
    with pytest.raises(UnsupportedStateError) as caught:
        tree.encode({"run": {"args": value}}, {}, "other")
    assert cure in str(caught.value.hint)
    modules = {"dataclasses": dataclasses, "attrs": attrs, "numpy": np}
    stored = eval(cure, {**modules, "args": value})
    tree.encode(stored, {}, "other")


@pytest.mark.parametrize(
    ("package", "name", "cure"),
    [
        ("omegaconf.dictconfig", "DictConfig", "OmegaConf.to_container(args, resolve=True)"),
        ("polars.dataframe.frame", "DataFrame", "args.to_dict(as_series=False)"),
        ("polars.series.series", "Series", "args.to_list()"),
    ],
)
def test_classes_of_libraries_are_known_by_name(package: str, name: str, cure: str) -> None:
    """They need not be installed, nor are they imported to ask."""
    kind = type(name, (), {"__module__": package})
    with pytest.raises(UnsupportedStateError) as caught:
        tree.encode(kind(), {}, "other.args")
    assert cure in str(caught.value.hint)


def test_the_cure_speaks_of_the_keyword_that_was_passed(tmp_path: Path) -> None:
    """As the user has written it: ``args=args``; in a list, which has no names, of a value."""
    with pytest.raises(UnsupportedStateError, match=r"Pass vars\(args\) instead"):
        Checkpointer(tmp_path).checkpoint(
            1, model=nn.Linear(1, 1), args=argparse.Namespace(rate=0.1)
        )
    with pytest.raises(UnsupportedStateError, match=r"Pass str\(value\) instead"):
        tree.encode([Path("data")], {}, "other.files")


def test_what_cannot_be_stored_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    """A value passed to ``start`` is what ``checkpoint`` will be passed, an epoch later."""
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(UnsupportedStateError, match=r"other\.args is an argparse\.Namespace"):
        checkpointer.start(nn.Linear(1, 1), args=argparse.Namespace(rate=0.1))
    with pytest.raises(UnsupportedStateError, match=r"Leave it out.*StatefulDataLoader"):
        checkpointer.start(nn.Linear(1, 1), loader=DataLoader(TensorDataset(torch.ones(2))))
    sparse = torch.eye(2).to_sparse()  # of tensors the save decides
    assert checkpointer.start(nn.Linear(1, 1), first=sparse).start_epoch == 1
