"""Errors for a place that cannot serve, with what to do about it. Touches nothing."""

from __future__ import annotations

import errno
import re

from ray_imuckpt.errors import StorageError
from ray_imuckpt.storage.failures import ExhaustedError

_EXPIRED = re.compile(r"ExpiredToken|token has expired", re.IGNORECASE)
_UNREACHABLE = re.compile(r"error sending request|Could not connect|Cannot connect|refused")


def disk_error(what: str, url: str, error: OSError) -> StorageError:
    """Return the error for a local directory that ``cannot be written``, or the like."""
    cures = {
        errno.EACCES: "Give this user the right to read and write there, or choose another `dir`.",
        errno.EPERM: "Give this user the right to read and write there, or choose another `dir`.",
        errno.EROFS: "The file system is mounted to be read only; choose another `dir`.",
        errno.ENOSPC: "The disk is full; make room or choose another `dir`.",
        errno.EDQUOT: "The quota is used up; make room or choose another `dir`.",
        errno.ENOTDIR: "A part of this path is a file, not a directory; look at `dir`.",
        errno.ENAMETOOLONG: "Choose a shorter `dir`.",
        errno.ENOENT: "The directory above it is not there, either: is a disk not mounted?",
    }
    return StorageError(
        f"The directory {what}: {error.strerror or error}.",
        url=url,
        hint=cures.get(error.errno or 0, "Look at the disk, or choose another `dir`."),
    )


def store_error(what: str, url: str, error: OSError, *, objects: bool) -> StorageError:
    """Return the error for a directory that ``cannot be written``, or the like, elsewhere.

    Args:
        what: What cannot be done.
        url: The directory.
        error: What the file system said.
        objects: Whether it is an object store, where only a bucket can be missing.
    """
    plain = type(error) in (OSError, ExhaustedError)
    says = str(error) if plain else f"{type(error).__name__}: {error}"
    cure = "Look at the credentials, the endpoint and `dir`."
    if _EXPIRED.search(says):
        cure = "Renew the credentials: those that were used have expired."
    elif _UNREACHABLE.search(says):
        cure = "Is the endpoint (endpoint_url) right, and does anything answer there?"
    elif says.startswith(("TypeError", "AttributeError")):
        cure = "Look at storage_options: they are those of fsspec's file system for this URL."
    elif isinstance(error, PermissionError):
        cure = "Give these credentials the right to list, read, write and delete there."
    elif isinstance(error, FileNotFoundError) and objects:
        says = "its bucket does not exist"
        cure = "Look at `dir`, or make the bucket: none is made here."
    elif isinstance(error, FileNotFoundError):
        cure = "Look at `dir`: the directory above it is not there, either."
    return StorageError(f"The directory {what}: {says}.", url=url, hint=cure)


def unfit(name: str, url: str, why: str) -> StorageError:
    """Return the error for a file system on which a commit would not be one step."""
    return StorageError(
        f"{name} cannot hold checkpoints: {why}. A crash could lose one that was committed.",
        url=url,
        hint="Save to an object store, to a local or mounted disk, or over sftp. What is there "
        "already can be read.",
    )
