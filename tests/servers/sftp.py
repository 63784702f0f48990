"""SFTP by an sshd of this user's own, with its own configuration and keys."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.processes import NotInstalledError, free_port, running

_PATHS = "/usr/sbin:/usr/local/sbin:/sbin"  # where it is, though not in every user's path
_CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Sshd:
    """An sshd.

    Attributes:
        port: Of the loopback.
        key: The path of the private key that it lets in.
        directory: Of this machine, where files may be put.
    """

    port: int
    key: str
    directory: Path

    @property
    def options(self) -> dict[str, Any]:
        """Return the ``storage_options`` for fsspec's file system."""
        own = {"key_filename": self.key, "look_for_keys": False, "allow_agent": False}
        return {"port": self.port, "username": getpass.getuser(), **own}


@contextlib.contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """Run an sshd.

    Args:
        directory: An empty one, for its keys and for files.

    Raises:
        NotInstalledError: sshd or ssh-keygen is not there, or this user cannot start it.
    """
    path = f"{os.environ.get('PATH', '')}:{_PATHS}"
    program, keygen = shutil.which("sshd", path=path), shutil.which("ssh-keygen", path=path)
    if program is None or keygen is None:
        raise NotInstalledError("sshd (openssh-server)")
    if not os.getuid():
        with contextlib.suppress(OSError):  # sshd says it better
            os.makedirs("/run/sshd", exist_ok=True)  # as root it insists on it
    for name in ("host", "user"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    port = free_port()
    configuration = directory / "sshd_config"
    configuration.write_text(_CONFIGURATION.format(port=port, directory=directory))
    files = directory / "files"
    files.mkdir()
    with running([program, "-D", "-e", "-f", str(configuration)], port):
        yield Sshd(port, str(directory / "user"), files)
