"""Each parser for two minutes under atheris, from real files: no find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import python_path

SECONDS = 120
PARSERS = ("manifest", "lineage", "pointer", "header", "state")


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_accepts_or_raises_an_error_of_ours(tmp_path: Path, parser: str) -> None:
    """For any bytes, in 10 s and 4 GB; what is accepted keeps what readers rely on."""
    pytest.importorskip("atheris", reason="there is no wheel of it for this Python")
    command = [sys.executable, "-m", "support.fuzz.run", parser, str(tmp_path), str(SECONDS)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    finds = sorted(path.name for path in tmp_path.glob(f"{parser}-*"))
    assert (done.returncode, finds) == (0, []), (done.stdout + done.stderr)[-5000:]
    print(f"\n{parser}: {(tmp_path / f'counts-{parser}').read_text()}", end="")
