"""Each parser for two minutes under atheris, from real files: no find."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.programs import run_program

SECONDS = 120
PARSERS = ("manifest", "lineage", "pointer", "header", "state")


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_accepts_or_raises_an_error_of_ours(tmp_path: Path, parser: str) -> None:
    """For any bytes, in 10 s and 4 GB; what is accepted keeps what readers rely on."""
    pytest.importorskip("atheris", reason="there is no wheel of it for this Python")
    done = run_program("support.fuzz.run", parser, tmp_path, SECONDS, timeout=None)
    finds = sorted(path.name for path in tmp_path.glob(f"{parser}-*"))
    assert (done.returncode, finds) == (0, []), (done.stdout + done.stderr)[-5000:]
    print(f"\n{parser}: {(tmp_path / f'counts-{parser}').read_text()}", end="")
