"""A server as a process of its own, on a free port of the loopback. Touches processes, sockets."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

_PATIENCE = 300.0  # seconds until a server answers; it takes one or two, on an idle machine


class NotInstalledError(Exception):
    """A server that is not on this machine, with what would bring it."""


def free_port() -> int:
    """Return a port of the loopback that nobody listens on.

    The kernel gives none of these to whoever asks for any: it is still free when the server has
    come so far that it takes it, seconds later.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running(command: Sequence[str], port: int, **environment: str) -> Iterator[None]:
    """Run a server, from when it answers on its port.

    Args:
        command: The program with its arguments.
        port: Of the loopback.
        environment: All of the program's environment, but for an empty home.

    Raises:
        RuntimeError: It ended at once, or does not answer; with what it said.
    """
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=here,
            env={"HOME": here, **environment},
        )
        try:
            if not _answers(process, port):
                said.seek(0)
                raise RuntimeError(f"{command[0]} does not answer: {said.read().decode()}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
