"""Names on disk, and nothing else. Touches nothing.

A checkpoint is the directory ``checkpoint=<epoch>``; its data files are
``<part>-<save id>[-<rank>].<suffix>``, with the rank where a part has files of several ranks. The
save id is new for every save, so that no save ever writes over a file of another one.
"""

from __future__ import annotations

import posixpath
import re
import secrets
from typing import NamedTuple

from ray_imuckpt.arguments import LARGEST

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
POINTER = "imuckpt-pointer.json"

_CHECKPOINT = re.compile(r"checkpoint=(0|[1-9][0-9]*)", re.ASCII)
_DATA_FILE = re.compile(
    r"([a-z_]+)-([0-9a-f]{16})(?:-(0|[1-9][0-9]{0,9}))?\.(safetensors|json)", re.ASCII
)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)


class DataFileName(NamedTuple):
    """The name of a data file, taken apart; `rank` is ``None`` where the name says none."""

    part: str
    save_id: str
    rank: int | None
    suffix: str


def checkpoint_name(epoch: int) -> str:
    """Return the directory name of the checkpoint made at the end of `epoch`."""
    return f"checkpoint={epoch}"


def parse_checkpoint_name(name: str) -> int | None:
    """Return the epoch that a directory name stands for, or ``None`` for a foreign name.

    Foreign is also a number that no manifest can state.
    """
    match = _CHECKPOINT.fullmatch(name)
    epoch = int(match[1]) if match else None
    return epoch if epoch is not None and epoch <= LARGEST else None


def epoch_of_url(url: str) -> int | None:
    """Return the epoch that a directory is of by its name, ``None`` for a foreign name."""
    return parse_checkpoint_name(posixpath.basename(url.rstrip("/")))


def new_save_id() -> str:
    """Return 16 hexadecimal digits, unique to one save."""
    return secrets.token_hex(8)


def data_file_name(part: str, save_id: str, suffix: str, rank: int | None = None) -> str:
    """Return the name of a data file, for example ``model-0123456789abcdef.safetensors``.

    Args:
        part: What the file holds.
        save_id: Of the save that writes it.
        suffix: ``safetensors`` or ``json``.
        rank: Who writes it, where several ranks write files of the part.
    """
    return f"{part}-{save_id}{'' if rank is None else f'-{rank}'}.{suffix}"


def parse_data_file_name(name: str) -> DataFileName | None:
    """Return what the name of a data file says, or ``None`` for a foreign name."""
    match = _DATA_FILE.fullmatch(name)
    if match is None:
        return None
    part, save_id, rank, suffix = match.groups()
    return DataFileName(part, save_id, None if rank is None else int(rank), suffix)


def is_data_file_name(name: str) -> bool:
    """Return whether `name` is one that a save of ours gives to a data file."""
    return _DATA_FILE.fullmatch(name) is not None


def is_temporary_name(name: str) -> bool:
    """Return whether `name` is that of a file of ours that is still being written."""
    return _TEMPORARY.fullmatch(name) is not None


def is_ours(path: str) -> bool:
    """Return whether a path in a run directory is that of a file that a save of ours writes."""
    directory, _, name = path.rpartition("/")
    if directory and parse_checkpoint_name(directory) is None:
        return False
    if directory and (name == MANIFEST or is_data_file_name(name)):
        return True
    return name == LINEAGE or is_temporary_name(name)
