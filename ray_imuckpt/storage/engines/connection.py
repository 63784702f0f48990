"""A connection of obstore's as a value. Touches obstore."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

S3 = frozenset({"s3", "s3a"})
GOOGLE = frozenset({"gs", "gcs"})
AZURE = frozenset({"az", "abfs", "abfss", "adl"})


class UnknownOptionError(ValueError):
    """An option that has no counterpart; its value is not in the text."""


@dataclass(frozen=True)
class Connection:
    """A store to connect to, and all options; its repr holds no secret.

    Attributes:
        scheme: Of the URL.
        identity: Scheme and endpoint: equal for the same store.
        options: Of obstore's class, without the bucket.
        client: Its options for HTTP.
        credentials: Looks up credentials; ``None`` where they were given, or obstore does it.
    """

    scheme: str
    identity: Hashable
    options: Mapping[str, Any] = field(repr=False)
    client: Mapping[str, Any]
    credentials: Callable[[], Callable[[], Any]] | None = field(default=None, repr=False)

    def store(self, bucket: str, *, client: Mapping[str, Any], retry: Mapping[str, Any]) -> Any:
        """Return obstore's object for a bucket; nothing is asked yet.

        Args:
            bucket: Its name.
            client: More options for HTTP, which the user's own go before.
            retry: obstore's options for retries.
        """
        from obstore import store

        kinds = {**dict.fromkeys(S3, store.S3Store), **dict.fromkeys(GOOGLE, store.GCSStore)}
        kind: Any = kinds.get(self.scheme, store.AzureStore)
        more = {} if self.credentials is None else {"credential_provider": self.credentials()}
        return kind(
            bucket,
            config=dict(self.options),
            client_options={**client, **self.client},
            retry_config=dict(retry),
            **more,
        )


def checked_endpoint(url: str) -> str:
    """Return the URL of an endpoint.

    Raises:
        UnknownOptionError: It is none (obstore would panic), or holds a password (obstore would
            tell it in its errors).
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port
        known = False
    if not known or parts.username is not None:
        raise UnknownOptionError("an endpoint that is no URL of a host alone")
    return url


def timeouts(config: dict[str, Any]) -> dict[str, Any]:
    """Take botocore's timeouts out of its options, and return them as obstore's."""
    taken = {}
    for name, theirs in (("connect_timeout", "connect_timeout"), ("read_timeout", "timeout")):
        if name in config:
            taken[theirs] = timedelta(seconds=float(config.pop(name)))
    return taken


def mapping(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Take an option that is a mapping out of others, and return a copy of it."""
    value = options.pop(name, None) or {}
    if not isinstance(value, Mapping):
        raise UnknownOptionError(f"{name} is not a mapping")
    return dict(value)


def nothing_left(options: Mapping[str, Any], name: str) -> None:
    """Raise `UnknownOptionError` where an option was not taken."""
    if options:
        raise UnknownOptionError(f"option(s) in {name} without a counterpart: {sorted(options)}")
