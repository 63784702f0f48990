"""Nothing that is tried goes beyond the loopback, and what is missing is named."""

from __future__ import annotations

import socket

import pytest

from servers.loopback import BeyondLoopbackError
from servers.processes import running


@pytest.mark.usefixtures("loopback_only")
def test_nothing_connects_beyond_the_loopback() -> None:
    """Neither by address nor by name; nothing is sent before that is found."""
    for host in ("192.0.2.1", "169.254.169.254", "2001:db8::1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as connection, pytest.raises(BeyondLoopbackError, match=host):
            connection.connect((host, 80))
    with pytest.raises(BeyondLoopbackError, match="example"):
        socket.getaddrinfo("bucket.example.com", 443)
    with socket.socket() as listening, socket.socket() as connection:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        connection.connect(listening.getsockname())


def test_a_server_that_does_not_start_says_why() -> None:
    """With its own words, and at once."""
    with (
        pytest.raises(RuntimeError, match="no such thing"),
        running(["sh", "-c", "echo no such thing; exit 1"], 9, PATH="/bin:/usr/bin"),
    ):
        pass
