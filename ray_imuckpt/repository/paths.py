"""Names on disk, and nothing else. Touches nothing.

A checkpoint is the directory ``checkpoint=<epoch>``; its data files are
``<part>-<save id>.<suffix>``. The save id is new for every save, so that no save ever writes over
a file of another one.
"""

from __future__ import annotations

import re
import secrets

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
POINTER = "imuckpt-pointer.json"

_CHECKPOINT = re.compile(r"checkpoint=(0|[1-9][0-9]*)", re.ASCII)
_DATA_FILE = re.compile(r"[a-z_]+-[0-9a-f]{16}\.(safetensors|json)", re.ASCII)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)


def checkpoint_name(epoch: int) -> str:
    """The directory name of the checkpoint made at the end of `epoch`."""
    return f"checkpoint={epoch}"


def parse_checkpoint_name(name: str) -> int | None:
    """The epoch that a directory name stands for, or ``None`` for a foreign name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def new_save_id() -> str:
    """16 hexadecimal digits, unique to one save."""
    return secrets.token_hex(8)


def data_file_name(part: str, save_id: str, suffix: str) -> str:
    """The name of a part's file, for example ``model-0123456789abcdef.safetensors``."""
    return f"{part}-{save_id}.{suffix}"


def is_data_file_name(name: str) -> bool:
    """Whether `name` is one that a save of ours gives to a data file."""
    return _DATA_FILE.fullmatch(name) is not None


def is_temporary_name(name: str) -> bool:
    """Whether `name` is one that `temporary_name` gives."""
    return _TEMPORARY.fullmatch(name) is not None


def attempt_of(name: str) -> str:
    """The attempt id in the name of a data file."""
    return name.rpartition("-")[2].partition(".")[0]


def is_ours(path: str) -> bool:
    """Whether a path in a directory of checkpoints is that of a file that a save of ours writes."""
    directory, _, name = path.rpartition("/")
    if directory and parse_checkpoint_name(directory) is None:
        return False
    if directory and (name == MANIFEST or is_data_file_name(name)):
        return True
    return name == LINEAGE or is_temporary_name(name)
