"""The names that a user gives to storages: each means one directory, or is an error. Touches os.

The rules, of which each ends in an absolute path, in a URL whose scheme fsspec knows, or in a
``ValueError`` that says how to write what was probably meant (ADR 20):

- ``<scheme>://…`` is a URL. Schemes are told apart without regard to case; ``file://`` and
  ``local://`` are paths.
- ``<cache>::<URL>`` is that URL: fsspec's caches before a store are seen through. Nothing else is
  chained.
- All else is a path, taken literally (``?``, ``#``, ``*``, ``%`` and ``::`` too), unless it begins
  like a URL: ``s3:/bucket``, ``s3:bucket``.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets

from ray_imuckpt.errors import StorageError

MAX_RECORD = 64 * 1024 * 1024  # bytes of a file that is read whole; a manifest of 10 TB has 45 MB

_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/]*@")
_ALMOST_PASSWORD = re.compile(r"(?<=:)[^:]*@")  # also one with a slash, or where `://` is wrong
_SIGNED = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+|[a-z_-]*token|[a-z_-]*key)=)[^&/]*"
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-_]*)://(.*)", re.DOTALL)
_ALMOST_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-_]+):(/.*)?", re.DOTALL)
_UNSENDABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_URL_INSIDE = re.compile(r"(?:/|::)([A-Za-z][A-Za-z0-9+.\-_]*)://")
_LOCAL = ("file", "local")
_SHOWN_WHOLE = ("http", "https")  # whose paths are URLs, with all that is in them
_CACHES = frozenset({"blockcache", "cached", "filecache", "simplecache"})
# Schemes in whose URLs a bucket or container comes first.
_WITH_BUCKET = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "tos"})
# Schemes whose file systems take `?` for a part of the path; others cut it off as a query.
_WITH_QUESTION_MARK = frozenset({"memory", "s3", "s3a", "gs", "gcs"})


def absolute(name: str | os.PathLike[str]) -> str:
    """Return `name` so that it means the same place in every process: a path from ``/``, or a URL.

    Raises:
        ValueError: It may mean two places, or none.
        TypeError: It is not text.
        StorageError: It begins at the working directory, which is gone.
    """
    text = os.fspath(name)
    if not isinstance(text, str):
        raise TypeError(f"{name!r} is bytes; a directory is named by a str or a Path.")
    if not text or "\0" in text:
        raise ValueError(f"{text!r} names no directory; the working directory is '.'.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text!a} holds half a character, which no name can.") from None
    if text.startswith("./"):
        return _from_root(text)
    first, chained, rest = text.partition("::")
    if chained and first in _CACHES:
        cached = absolute(rest)  # a path too: a cache before the local disk is the local disk
        return cached if is_path(cached) else f"{first}::{cached}"
    url = _URL.fullmatch(text)
    if url:
        scheme, rest = url[1].lower(), url[2]
        return _file_url(text, rest) if scheme in _LOCAL else _remote(text, scheme, rest)
    if chained and first in _protocols():
        raise ValueError(
            f"{masked(text)!r}: only caches ({', '.join(sorted(_CACHES))}) may stand before `::`. "
            "Give the URL of the place itself; a local directory of this name is "
            f"{'./' + masked(text)!r}."
        )
    inside = _URL_INSIDE.search(text)
    if inside and inside[1].lower() in _protocols():
        raise ValueError(
            f"{text!r} has the beginning of a URL, {inside[1]}://, in the middle. Nothing is put "
            "before a URL to give a place."
        )
    return _path(text)


def working_directory() -> str:
    """Return the working directory; where it is gone ``"."``, whose use tells that."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "."


def is_path(name: str) -> bool:
    """Return whether what `absolute` returned is a path of this machine."""
    return name.startswith("/")


def shown(name: str) -> str:
    """Return a name without the password that a URL may hold."""
    return _PASSWORD.sub(r"\1@", name)


def masked(text: str) -> str:
    """Return what a user gave as a name without whatever in it may be a secret, for an error."""
    return _SIGNED.sub(r"\1…", _ALMOST_PASSWORD.sub("…@", text))


def _file_url(text: str, rest: str) -> str:
    rest = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    if not rest.startswith(("/", "~")):
        raise ValueError(
            f"{text!r}: after `file://` comes a host, and {rest.split('/')[0]!r} would be one. "
            f"Write {'file:///' + rest!r} for an absolute path, or the path alone: {rest!r}."
        )
    return _expanded(rest)


def _path(text: str) -> str:
    almost = _ALMOST_URL.fullmatch(text)
    if almost and almost[1].lower() in _LOCAL and almost[2]:
        return _expanded(almost[2])  # file:/x is file:///x (RFC 8089)
    word = re.split(r":|//", text, maxsplit=1)[0]
    if almost or (word != text and "/" not in word and word.lower() in _protocols()):
        raise ValueError(
            f"{masked(text)!r} is neither a URL nor surely a path. A URL is written "
            f"{word.lower() + '://' + masked(text)[len(word) :].lstrip(':/')!r}; a local directory "
            f"of this name is {'./' + masked(text)!r}."
        )
    return _expanded(text)


def _expanded(text: str) -> str:
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"{text!r}: there is no user {path.split('/')[0].removeprefix('~')!r} on this machine. "
            f"A directory of this name is {'./' + text!r}."
        )
    return _from_root(path)


def _from_root(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise StorageError(
            "The working directory, from where a relative path leads, is not there any more.",
            url=path,
            hint="Give a path that begins with /, or change to a directory that is there.",
        ) from error


def _remote(text: str, scheme: str, rest: str) -> str:
    text = masked(text)
    known = _protocols()
    if scheme not in known:
        near = difflib.get_close_matches(scheme, known, n=3, cutoff=0.5)
        meant = f" Did you mean {' or '.join(f'{n}://' for n in near)}?" if near else ""
        raise ValueError(
            f"{text!r}: fsspec knows no file system {scheme}://.{meant} "
            "fsspec.available_protocols() lists what it knows."
        )
    if scheme in _WITH_BUCKET and not rest.partition("/")[0]:
        raise ValueError(f"{text!r} names no bucket; the form is {scheme}://<bucket>/<directory>.")
    if {".", ".."} & set(rest.split("/")):
        raise ValueError(
            f"{text!r}: what `.` and `..` mean in a URL depends on the store. Leave them out."
        )
    if "::" in rest:
        raise ValueError(f"{text!r}: fsspec would take `::` for a chain. Use another name.")
    if _UNSENDABLE.search(rest):
        raise ValueError(
            f"{text!a} holds a control character or half a character; not every store takes it."
        )
    if _SIGNED.search(rest):
        raise ValueError(
            f"{text!r} is signed, and would be shown with its signature wherever it is told. Give "
            "the URL without what follows `?`, and credentials as storage_options."
        )
    if scheme in _SHOWN_WHOLE and shown(f"{scheme}://{rest}") != f"{scheme}://{rest}":
        raise ValueError(
            f"{text!r}: fsspec would show its password in every error. Leave it out, and give "
            "storage_options={'client_kwargs': {'auth': aiohttp.BasicAuth(user, password)}}."
        )
    _, _, port = rest.partition("/")[0].rpartition("@")[2].rpartition("]")[2].partition(":")
    if scheme not in _WITH_BUCKET and port and not port.isdecimal():
        raise ValueError(
            f"{scheme}://…: what follows the host's colon is no port. In a password `/` is written "
            "%2F, and @ is %40."
        )
    if "?" in rest and (scheme not in _WITH_QUESTION_MARK or "?versionId=" in rest):
        raise ValueError(
            f"{text!r}: what follows `?` would not be a part of the path. Use a name without it, "
            "and give options as storage_options."
        )
    return f"{scheme}://{rest.rstrip('/')}"


def _protocols() -> set[str]:
    import fsspec  # not before a name needs it

    return {*fsspec.available_protocols(), *fsspec.registry}  # the latter: registered as a class


def join(url: str, name: str) -> str:
    """Return the URL of `name` in the directory at `url`, which may be a store's root."""
    if not name:
        return url
    return url + name if url.endswith("/") else f"{url}/{name}"


def temporary_name(name: str) -> str:
    """Return a name beside `name`, for bytes that are not complete yet; nobody reads it."""
    return f".{name}.{secrets.token_hex(4)}.tmp"
