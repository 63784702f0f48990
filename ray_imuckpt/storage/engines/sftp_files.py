"""Files of fsspec's SFTP, written and read by many requests at once. Touches nothing.

paramiko, behind it, sends requests of 32 KiB and waits for the answer to each, unless it is told
not to. Its client serves one thread only, and an answer that another one has read is waited for in
vain: whoever calls these functions holds the file system until they have returned, when all answers
are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REQUEST = 32 * 1024  # bytes; what every server takes, and paramiko asks for


def write(file: Any, views: Sequence[memoryview]) -> None:
    """Write views to a file of paramiko's, and raise what any of the requests has met."""
    *most, last = [view for view in views if len(view)]
    file.set_pipelined(True)
    for view in most:
        file.write(view)
    file.write(last[:-1])
    # `close` passes over the errors of requests that nobody has waited for yet. A write that is not
    # pipelined waits for all before it, too.
    file.set_pipelined(False)
    file.write(last[-1:])


def read(file: Any, offset: int, length: int) -> bytes:
    """Return `length` bytes of a file of paramiko's from `offset` on, fewer where it ends."""
    stop = min(offset + length, file.stat().st_size)  # behind the end nothing is ever answered
    if stop <= offset:
        return b""
    file.seek(offset)
    file.prefetch(stop)
    return b"".join(file.read(min(_REQUEST, stop - at)) for at in range(offset, stop, _REQUEST))
