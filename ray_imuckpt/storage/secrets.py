"""The secrets among the options of a file system, which no error may tell. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ray_imuckpt.errors import StorageError

_NAMES = re.compile(r"(?i)key|secret|token|pass|sas|connection_string|credential|auth")
_SHORTEST = 4  # characters of what is looked for: less is no secret, and would be found anywhere


def without(text: str, options: Mapping[str, Any]) -> str:
    """Return a text in which no secret of the options stands."""
    for secret in _among(options):
        text = text.replace(secret, "…")
    return text


def told_by(error: BaseException, options: Mapping[str, Any]) -> bool:
    """Return whether an error, or one that led to it, tells a secret of the options."""
    cause: BaseException | None = error
    while cause is not None:
        if without(str(cause), options) != str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def check_endpoint(options: Mapping[str, Any], url: str) -> None:
    """Raise `StorageError` where an endpoint holds a user's name or password.

    It stands in the errors of every library below, and no store is asked with it: what signs a
    request is the key.
    """
    more = options.get("client_kwargs")
    for given in (options, more if isinstance(more, Mapping) else {}):
        endpoint = str(given.get("endpoint_url") or "")
        if "@" in urlsplit(endpoint).netloc:
            raise StorageError(
                "The endpoint_url in storage_options holds a user's name or a password.",
                url=url,
                hint="Leave it out there, and give key= and secret=.",
            )


def _among(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _among(value)
        elif isinstance(value, str) and _NAMES.search(name) and len(value) >= _SHORTEST:
            yield value
