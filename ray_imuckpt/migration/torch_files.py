"""Files of ``torch.save``, by ``torch.load(weights_only=True)`` alone. Touches torch.load.

torch reads these pickles by an unpickler of its own, which knows tensors and containers. Here it
also knows classes that hold plain values and do nothing: of NumPy's arrays and scalars, of dates,
of paths, and ``argparse.Namespace``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
import torch

from ray_imuckpt import units
from ray_imuckpt.errors import CorruptCheckpointError, UnsupportedStateError

_HINT = (
    "Where you trust it, load it with the program that wrote it, and save tensors and plain values "
    "in their place: vars(args), str(path), dataclasses.asdict(config)."
)
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]  # what builds them
_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    _SCALAR,
    _ARRAY,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 calls them
    (_ARRAY, "numpy.core.multiarray._reconstruct"),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGMmSU"},
    dt.date,
    dt.datetime,
    dt.timedelta,
    dt.timezone,
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]


_UNSAFE = re.compile(r"[Uu]nsupported(?: global:)? GLOBAL (\S+)")  # in torch's message


def read_file(path: str) -> Any:
    """Return what a file of ``torch.save`` holds; its tensors are mapped, not read.

    One that torch wrote before version 1.6 is read into memory.

    Raises:
        UnsupportedStateError: To load it would run code; the error names what.
        CorruptCheckpointError: It is no such file, or cut.
        OSError: It is not there, or cannot be read.
    """
    if not os.path.isfile(path):
        raise CorruptCheckpointError("It is no file.", url=path)
    return _load(path, path, mapped=zipfile.is_zipfile(path))


def read_bytes(data: bytes, url: str) -> Any:
    """Return what the bytes of such a file hold; errors as for `read_file`."""
    return _load(io.BytesIO(data), url, mapped=False)


def _load(file: Any, url: str, *, mapped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_more_than_known()):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes of somebody else lead to
        unsafe = _unsafe(file) or _UNSAFE.findall(str(error))
        if unsafe:
            raise UnsupportedStateError(
                "It was not loaded, as that would run code that the file names: "
                f"{units.listed(unsafe)}.",
                url=url,
                hint=_HINT,
            ) from None  # torch's text advises to load it all the same
        raise CorruptCheckpointError(
            f"It is no file of torch.save, or is cut: {_reason(error)}",
            url=url,
            hint="Is it whole? Copy it again, or take another one.",
        ) from error


def _more_than_known() -> list[Any]:
    """Return what is harmless and this process has not allowed: afterwards it is forgotten."""
    known = torch.serialization.get_safe_globals()
    return [one for one in _HARMLESS if one not in known]


def _unsafe(file: Any) -> list[str]:
    """Return the names in the file that torch would have to import."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        with torch.serialization.safe_globals(_more_than_known()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001 - then the file is no zip archive, or no pickle
        return []


def _reason(error: Exception) -> str:
    """Return what went wrong, without torch's advice to read the file all the same."""
    lines = (line.strip() for line in str(error).splitlines())
    told = [line for line in lines if line and "weights" not in line.lower()]
    return f"{type(error).__name__}: {told[0] if told else 'not a pickle of tensors'}"
