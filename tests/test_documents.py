"""The documents speak of files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_each_guarantee_in_the_readme_links_to_its_test() -> None:
    section = (ROOT / "README.md").read_text().split("## Guarantees")[1].split("##")[0]
    rows = [
        line for line in section.splitlines() if line.startswith("| ") and "shown by" not in line
    ]
    assert len(rows) >= 10
    assert [row for row in rows if "](tests/test_" not in row] == []
