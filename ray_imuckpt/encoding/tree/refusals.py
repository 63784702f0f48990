"""The error for a value that cannot be stored, with what to write in its place."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import uuid
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np

from ray_imuckpt.errors import UnsupportedStateError

_LAST_KEY = re.compile(r"([^\W\d]\w*)(?:['\"]\])?$")  # of a path such as other.args['data']


def refusal(value: Any, path: str) -> UnsupportedStateError:
    """Return the error for a value of a type that cannot be stored, with what to do instead."""
    kind = type(value)
    called = f"{kind.__module__}.{kind.__qualname__}"
    article = "an" if called[0] in "aeiouAEIOU" else "a"
    last = _LAST_KEY.search(path)
    name = last[1] if last else "value"
    built_in = kind.__mro__[-2:][0].__name__  # that a subclass of one is derived from
    hint = next(hint for fits, hint in _HINTS if fits(value))
    return UnsupportedStateError(
        f"{path} is {article} {called}: it cannot be stored.",
        hint=hint.format(name=name, built_in=built_in),
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _has(name: str) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, type) and hasattr(value, name)


def _of(package: str, *names: str) -> Callable[[Any], bool]:
    """Return whether a value is of a class of a library, which is not imported to ask."""

    def fits(value: Any) -> bool:
        kind = type(value)
        return kind.__module__.partition(".")[0] == package and kind.__name__ in names

    return fits


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_asdict")


# The first that fits counts.
_HINTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (_is(argparse.Namespace, types.SimpleNamespace), "Pass vars({name}) instead."),
    (_is_dataclass, "Pass dataclasses.asdict({name}) instead."),
    (_has("__attrs_attrs__"), "Pass attrs.asdict({name}) instead."),
    (_is(PurePath, uuid.UUID, Decimal, Fraction), "Pass str({name}) instead."),
    (_of("pandas", "DataFrame"), 'Pass {name}.to_dict("list") instead.'),
    (_of("pandas", "Index", "Series"), "Pass {name}.tolist() instead."),
    (_of("polars", "DataFrame"), "Pass {name}.to_dict(as_series=False) instead."),
    (_of("polars", "Series"), "Pass {name}.to_list() instead."),
    (
        _of("omegaconf", "DictConfig", "ListConfig"),
        "Pass OmegaConf.to_container({name}, resolve=True) instead.",
    ),
    (_has("model_dump"), "Pass {name}.model_dump() instead."),  # pydantic's
    (
        _is_named_tuple,
        "Pass {name}._asdict() or tuple({name}) instead: its class could not be brought back.",
    ),
    (_has("to_pydatetime"), "Pass {name}.to_pydatetime() instead."),  # pandas' Timestamp
    (
        _is(dict),
        "Pass dict({name}) instead: what a subclass adds could not be brought back.",
    ),
    (
        _is(tuple, list, str, int, float, set),
        "Pass a plain {built_in}: the subclass could not be brought back.",
    ),
    (_is(np.ndarray), "Arrays of objects and of records cannot be stored; use numbers or strings."),
    (_is(re.Pattern), "Pass {name}.pattern instead."),
    (_is(Mapping), "Pass dict({name}) instead."),
    (
        _has("load_state_dict"),
        "Pass the object by keyword to start() and checkpoint(), or store {name}.state_dict().",
    ),
    (_has("to_dict"), "Pass {name}.to_dict() instead."),
    (_has("__array__"), "Pass numpy.asarray({name}) instead."),
    (_is(range, KeysView, ValuesView, ItemsView), "Pass list({name}) instead."),
    (
        _of("torch", "DataLoader"),
        "Leave it out; to go on in mid-epoch use torchdata's StatefulDataLoader, in per_rank.",
    ),
    (callable, "Functions and classes cannot be stored; build them anew in the program."),
    (
        lambda _: True,
        "Store plain values of it, or give its class state_dict and load_state_dict, and pass it.",
    ),
)
