"""The site: built without a warning, it has every public name, and no link in it leads nowhere."""

from __future__ import annotations

import ast
import html
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from sphinx.util.inventory import InventoryFile

import ray_imuckpt
from support.programs import HANGS

ROOT = Path(__file__).parents[1]
CONF = """
import sys
sys.path.insert(0, {docs!r})
root_doc = "README"
extensions = ["myst_parser", "extensions.contents", "extensions.diagrams", "extensions.sources"]
myst_heading_anchors = 4
html_theme = "basic"
"""


def build(source: Path, conf: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(conf)]
    return subprocess.run(
        [*command, "-d", str(target / ".doctrees"), str(source), str(target)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    target = tmp_path_factory.mktemp("site")
    result = build(ROOT, ROOT / "docs", target)
    assert result.returncode == 0, result.stderr
    return target


def public_names() -> set[str]:
    """All names that are not private, by the modules that a user imports from."""
    names = {f"ray_imuckpt.{name}" for name in ray_imuckpt.__all__}
    package = Path(ray_imuckpt.__file__).parent
    for path in [package / "schedules" / "__init__.py", *package.glob("integrations/[a-z]*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                module = path.parent if path.stem == "__init__" else path.with_suffix("")
                dotted = ".".join(module.relative_to(package.parent).parts)
                names |= {f"{dotted}.{name}" for name in ast.literal_eval(node.value)}
    return names - {"ray_imuckpt.schedules.PlateauDetector"}  # under the name that is imported


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """With its arguments, what it returns and raises: from its docstring."""
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    found = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    assert public_names() - found == set()
    assert "ray_imuckpt.Checkpointer.index_of_best" in found, "inherited calls too"
    assert not [name for name in found if "._" in name.replace(".__", ".")]
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text()))
    assert "timeout: float | timedelta = 1800.0" in text, "a default is shown as its value"
    assert "_AS_BUILT" not in text
    assert "Return type" not in text, "what stands before a colon in Returns is taken for one"
    assert "Create a new string object" not in text, "a value has no docstring of its own"


def test_no_link_of_the_site_leads_nowhere(site: Path) -> None:
    """Neither one to a page nor one to a place in it; Sphinx checks those of documents alone."""
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    assert len(pages) > 100
    lost = []
    for path, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"\w+:", link):
                continue
            file, _, place = unquote(link).partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.is_file() or (place and place not in places.get(target, {place})):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_every_document_is_a_page_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Pages are found by their folders, not by a list; a browser asks no other server."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    pages = [site / path.relative_to(ROOT).with_suffix(".html") for path in documents]
    assert [page for page in pages if not page.is_file()] == []
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()
    for page in pages:
        loads = r'<(?:script|img|iframe)[^>]+src="(\w+:[^"]+)"|<link[^>]+href="(https?:[^"]+)"'
        assert re.findall(loads, page.read_text()) == [], page


def test_what_a_document_links_to_is_shown(site: Path) -> None:
    """A test as its text, a folder by its own page."""
    readme = (site / "README.html").read_text()
    assert 'href="source/tests/test_crash_sweep.py.html"' in readme
    shown = (site / "source" / "tests" / "test_crash_sweep.py.html").read_text()
    assert "crash" in shown
    assert '<div class="highlight"' in shown
    assert 'href="examples/README.html"' in readme
    folder = (site / "examples" / "README.html").read_text()
    assert 'href="../source/examples/quickstart.py.html"' in folder
    assert (site / "source" / "examples" / "quickstart.py.html").is_file()


def test_faults_of_documents_end_the_build(tmp_path: Path) -> None:
    """A page that is in no contents, links that lead nowhere, a diagram that was not drawn."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "conf.py").write_text(CONF.format(docs=str(ROOT / "docs")))
    (tmp_path / "script.py").write_text("print()\n")
    (tmp_path / "README.md").write_text(
        "# First\n\n[all](docs/README.md) [it](script.py) [folder](folder/)\n"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "in_it.py").write_text("print()\n")
    (docs / "README.md").write_text("# Index\n\n## Part\n\n[page](page.md)\n")
    (docs / "page.md").write_text("# Page\n\n[back](README.md#part)\n")
    sound = build(tmp_path, tmp_path, tmp_path / "built")
    assert sound.returncode == 0, sound.stderr
    listing = (tmp_path / "built" / "source" / "folder.html").read_text()
    assert 'href="folder/in_it.py.html"' in listing
    (docs / "forgotten.md").write_text("# Forgotten\n")
    (docs / "page.md").write_text(
        "# Page\n\n[lost](no-page.md) [lost](README.md#no-part) [lost](../no-script.py)\n\n"
        "```mermaid\nsequenceDiagram\n```\n"
    )
    broken = build(tmp_path, tmp_path, tmp_path / "built")
    assert broken.returncode != 0
    for fault in (
        r"forgotten\.md: WARNING: document isn't included in any toctree",
        r"page\.md:3: WARNING: .*no-page\.md",
        r"page\.md:3: WARNING: .*no-part",
        r"page\.md:3: WARNING: .*no-script\.py",
        r"page\.md:5: WARNING: This diagram has no picture",
    ):
        assert re.search(fault, broken.stderr), f"{fault}\n{broken.stderr}"
