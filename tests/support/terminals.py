"""A program on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from conftest import python_path


def on_a_terminal(columns: int, *words: str, **variables: str) -> str:
    """Run Python on a terminal; return all that this was sent.

    Args:
        columns: Of the terminal.
        *words: Python's arguments.
        **variables: Of the environment.
    """
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        env={**environment, "PYTHONPATH": python_path(), **variables},
    ):
        os.close(writing)
        sent = b""
        while True:
            try:
                sent += os.read(reading, 65536)
            except OSError:  # Linux says so at the end of a terminal
                break
    os.close(reading)
    return sent.decode()
