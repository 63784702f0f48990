"""What a package index shows: the README, whose links lead somewhere from there too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """What a build writes into the package, by the build's own code."""
    pytest.importorskip("hatch_fancy_pypi_readme", reason="comes with pip install '.[dev]'")
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    core = ProjectMetadata(str(ROOT), PluginManager()).core
    shown = {"readme": core.readme, "type": core.readme_content_type, "urls": core.urls}
    return {**shown, "extras": set(core.optional_dependencies)}


def test_the_links_of_the_readme_lead_to_files_of_the_repository(metadata: dict[str, Any]) -> None:
    """Each relative link has become an absolute one, to the file that it led to; no other has."""
    assert metadata["type"] == "text/markdown"
    written = LINK.findall((ROOT / "README.md").read_text())
    shown = LINK.findall(metadata["readme"])
    assert len(shown) == len(written) > 30
    base = metadata["urls"]["Source"] + "/blob/main/"
    for before, after in zip(written, shown, strict=True):
        if before.startswith(("https://", "#")):
            assert after == before
        else:
            assert after == base + before
            assert (ROOT / after.removeprefix(base).partition("#")[0]).exists(), after
    assert LINK.sub("", metadata["readme"]) == LINK.sub("", (ROOT / "README.md").read_text())


def test_an_index_links_to_all_that_a_user_looks_for(metadata: dict[str, Any]) -> None:
    """The code, the documents, the issues and the changes, all of one repository."""
    urls = metadata["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert {url[: len(urls["Source"])] for url in urls.values()} == {urls["Source"]}
    for url in urls.values():
        path = url.removeprefix(urls["Source"]).removeprefix("/blob/main/")
        assert path in {"", "/issues"} or (ROOT / path).is_file(), url


def test_every_extra_that_a_user_may_want_is_in_the_guide(metadata: dict[str, Any]) -> None:
    """In its table, which has no other; the rest is for who works on the package."""
    text = (ROOT / "docs" / "guide.md").read_text()
    table = text.split("| extra | for |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)))
    assert set(named) == metadata["extras"] - {"bench", "dev", "docs", "soak", "test"}


def test_the_address_of_the_repository_stands_in_one_file() -> None:
    """Whoever moves it changes pyproject.toml and nothing else."""
    project = (ROOT / "pyproject.toml").read_text()
    address = re.search(r'^Source = "https://(.+)"$', project, re.MULTILINE)
    assert address
    files = [path for path in ROOT.iterdir() if path.suffix in {".md", ".yaml", ".txt", ".toml"}]
    for folder in ("docs", "examples", "ray_imuckpt", "tests", "tools", "benchmarks"):
        files += [path for path in (ROOT / folder).rglob("*.*") if path.suffix in {".md", ".py"}]
    holders = [path.name for path in files if address[1] in path.read_text()]
    assert holders == ["pyproject.toml"]
