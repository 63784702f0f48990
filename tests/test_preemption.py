"""`preempted()`: SIGTERM is noted once it is asked for, and only then."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_imuckpt import Checkpointer
from ray_imuckpt.runtime import preemption

SCRIPT = """if True:
    import os, signal, sys
    from ray_imuckpt import Checkpointer
    def mine(*_):
        print("mine", flush=True)
    if "handler" in sys.argv:
        signal.signal(signal.SIGTERM, mine)
    checkpointer = Checkpointer(sys.argv[1])
    if "ask" in sys.argv:
        print(checkpointer.preempted(), flush=True)
    child = os.fork() if "ask" in sys.argv else None
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    if child:
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print(checkpointer.preempted(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "printed", "status"),
    [
        ([], [], -signal.SIGTERM),  # nobody asked: it ends the process, as ever
        # noted, and the second one ends it; a process that was forked meanwhile is ended as ever
        (["ask"], ["False", "child -15", "True"], -signal.SIGTERM),
        (["ask", "handler"], ["False", "mine", "child 0", "mine", "True", "mine", "still here"], 0),
    ],
)
def test_the_first_sigterm_is_noted(
    tmp_path: Path, how: list[str], printed: list[str], status: int
) -> None:
    """preempted() becomes true; a handler of the user's is called as before."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *how],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stdout.split("\n")[:-1] == printed, ended.stderr
    assert ended.returncode == status


def test_a_thread_that_cannot_watch_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the main thread may install a handler; asked there, it does."""
    monkeypatch.setattr(preemption, "_WATCH", preemption.Watch())
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(Checkpointer(tmp_path).preempted()))
    with caplog.at_level(logging.WARNING):
        asking.start()
        asking.join()
    assert found == [False]
    assert "main thread" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is not preemption._WATCH._note

    # Not Ray's handler, which a test before may have left: it would end this process.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:  # asked again, where it can watch, it does
        assert not Checkpointer(tmp_path).preempted()
        signal.raise_signal(signal.SIGTERM)
        assert Checkpointer(tmp_path).preempted()
    finally:
        signal.signal(signal.SIGTERM, before)
