"""Every layout of a gang of two and of four continues from every other one."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.programs import run_program


@pytest.mark.slow
def test_all_layouts_continue_from_all_others(tmp_path: Path) -> None:
    """Byte for byte, within a gang and from the smaller to the larger, and so after two steps."""
    story = "all_layouts_continue_from_all_others"
    run_program("support.gangs", tmp_path, story, f"4:{story}", timeout=3600)
    assert len([*tmp_path.glob(f"**/{story}/passed-on-rank-*")]) == 2 + 4
