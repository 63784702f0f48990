"""The contents of the site, in its side bar, are the links of the pages that are named README.md.

A page belongs to the README.md of its folder, or of the nearest folder above. It comes into the
contents where that one links to it; if it does not, Sphinx warns of a page that is in no contents,
and the build fails. docs/README.md is the index of all, each of its headings that of a group.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

_README = "README"
_INDEX = "docs/README"
_LINK = re.compile(r"\]\(([^)#\s]+)\.md(?:#[^)\s]*)?\)")


def links(source: Path, docname: str) -> list[str]:
    """Return the pages that a page links to, by their names, in order, each once."""
    folder = posixpath.dirname(docname)
    found = [
        posixpath.normpath(posixpath.join(folder, link))
        for link in _LINK.findall(source.read_text())
        if "://" not in link
    ]
    return list(dict.fromkeys(found))


def owner(docname: str, known: set[str]) -> str:
    """Return the nearest page named README above a page, itself left out."""
    folder = posixpath.dirname(docname)
    while True:
        readme = posixpath.join(folder, _README)
        if readme in known and readme != docname:
            return readme
        if not folder:
            return _README
        folder = posixpath.dirname(folder)


def groups(source: Path) -> Iterator[tuple[str | None, str]]:
    """Yield the sections of a page, each with its heading; what stands above the first has none."""
    parts = re.split(r"^## +(.+)\n", source.read_text(), flags=re.MULTILINE)
    yield None, parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def contents(caption: str | None, parent: str, children: list[str]) -> nodes.Element:
    """Return a table of contents that is seen in the side bar only."""
    tree = addnodes.toctree(
        parent=parent, entries=[(None, child) for child in children], includefiles=children,
        maxdepth=2, caption=caption, glob=False, hidden=True, includehidden=False, numbered=0,
        titlesonly=True, rawentries=[], rawcaption=caption,
    )  # fmt: skip
    return nodes.compound("", tree, classes=["toctree-wrapper"])


def append(document: nodes.document, tree: nodes.Element) -> None:
    """Put contents below the page's heading, as which they are seen in those of other pages."""
    next(document.findall(nodes.section)).append(tree)


def add_contents(app: Sphinx, document: nodes.document) -> None:
    """Give a page its contents, if it is one that has some."""
    here, known = app.env.docname, app.env.found_docs
    if here == _INDEX or posixpath.basename(here) != _README:
        return
    if here != _README:
        linked = links(Path(app.env.doc2path(here)), here)
        children = [page for page in linked if page in known and owner(page, known) == here]
        if children:
            append(document, contents(None, here, children))
        return
    index = Path(app.env.doc2path(_INDEX))
    app.env.note_dependency(str(index))
    taken = {_README}
    append(document, contents(None, here, [_INDEX]))
    for caption, text in groups(index):
        children = []
        for link in _LINK.findall(text):
            page = posixpath.normpath(posixpath.join("docs", link))
            if page in known and page not in taken and owner(page, known) in {_README, _INDEX}:
                children.append(page)
                taken.add(page)
        if children:
            append(document, contents(caption, here, children))


def add_first_page(app: Sphinx, error: Exception | None) -> None:
    """Put the first page where a web server looks for it as well: its own name is README.html."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir, f"{_README}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect it: before Sphinx collects the contents, at its default priority of 500."""
    app.connect("doctree-read", add_contents, priority=400)
    app.connect("build-finished", add_first_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
