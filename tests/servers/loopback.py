"""What keeps tests on the loopback: a guard around sockets, and an environment of nobody's."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

ENVIRONMENT = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "NO_GCE_CHECK": "true",
    # Clients that do not go through Python's sockets: nobody listens there.
    "ALL_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}
"""In which no client finds credentials, or a way beyond the loopback."""

REMOVED = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCOUNT_NAME"),
    *("AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_AUTH_SOCK"),
)


class BeyondLoopbackError(AssertionError):
    """A test wanted to connect to another machine."""


def guard(patch: pytest.MonkeyPatch) -> None:
    """Let nothing of this process connect beyond the loopback, or look up a name there."""
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    for name in REMOVED:
        patch.delenv(name, raising=False)
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    look_up = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _check(self.family, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _check(self.family, address)
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if host is not None and not is_loopback(host):
            raise BeyondLoopbackError(f"A test looked up {host!r}.")
        return look_up(host, *rest, **options)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)


def is_loopback(host: str | bytes) -> bool:
    """Return whether a host is this machine, by a name or an address of the loopback."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _check(family: int, address: Any) -> None:
    if family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
        raise BeyondLoopbackError(f"A test wanted to connect to {address!r}.")
