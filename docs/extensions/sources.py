"""Links to files of the repository that are no pages lead to those files, shown in the site.

A document links to a test or an example as it does on a code host, by a relative path. Here each
file that is linked to becomes a page with its text, and a folder one with a list of its files,
unless it has a README.md of its own.
"""

from __future__ import annotations

import html
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.util.typing import ExtensionMetadata

_PREFIX = "source/"
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".txt": "text"}


def page_of(path: str) -> str:
    """Return the name of the page that shows a file or folder, by its path in the repository."""
    return _PREFIX + path


def mend_links(app: Sphinx, document: nodes.document) -> None:
    """Point links to files and folders at their pages; Sphinx still has them as downloads."""
    here, root = app.env.docname, Path(app.srcdir).resolve()
    for node in list(document.findall(addnodes.download_reference)) + [
        node for node in document.findall(addnodes.pending_xref) if node.get("reftype") == "myst"
    ]:
        target = str(node["reftarget"]).partition("#")[0]
        file = (Path(app.env.doc2path(here)).parent / target).resolve()
        if node.get("refdomain") == "doc" or not target or not file.is_relative_to(root):
            continue
        readme = (file / "README.md").relative_to(root).with_suffix("").as_posix()
        if file.is_dir() and readme in app.env.found_docs:
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", readme, None
        elif file.is_dir() or (file.is_file() and isinstance(node, addnodes.download_reference)):
            path = file.relative_to(root).as_posix()
            link = nodes.reference("", "", *node.children, internal=True, repository_path=path)
            node.replace_self(link)


def point_at_pages(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Give the links the address of their page, seen from this one, and note what to show."""
    for node in document.findall(nodes.reference):
        path = node.get("repository_path")
        if path is not None and isinstance(app.builder, StandaloneHTMLBuilder):
            node["refuri"] = app.builder.get_relative_uri(docname, page_of(path))


def linked_files(app: Sphinx) -> Iterator[str]:
    """Yield the paths of all files and folders that documents link to, and of what is in these."""
    root = Path(app.srcdir)
    for docname in sorted(app.env.found_docs):
        for node in app.env.get_doctree(docname).findall(nodes.reference):
            path = node.get("repository_path")
            if path is None:
                continue
            yield path
            if (root / path).is_dir():
                yield from (posixpath.join(path, name) for name in files_in(root / path))


def files_in(folder: Path) -> list[str]:
    """Return the names of the files of a folder that can be shown."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in _LANGUAGES)


def show(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file and folder."""
    builder = app.builder
    if not isinstance(builder, StandaloneHTMLBuilder):
        return
    for path in dict.fromkeys(linked_files(app)):
        file = Path(app.srcdir, path)
        if file.is_dir():
            links = {
                name: builder.get_relative_uri(page_of(path), page_of(f"{path}/{name}"))
                for name in files_in(file)
            }
            items = (
                f'<li><a href="{link}">{html.escape(name)}</a></li>' for name, link in links.items()
            )
            body = f"<ul>{''.join(items)}</ul>"
        else:
            language = _LANGUAGES.get(file.suffix, "text")
            body = builder.highlighter.highlight_block(file.read_text(), language, linenos=False)
        title = html.escape(path)
        context = {"title": title, "body": f"<h1><code>{title}</code></h1>{body}", "parents": []}
        yield page_of(path), context, "page.html"


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect it: before Sphinx copies downloads, and MyST looks for what it does not know."""
    app.connect("doctree-read", mend_links, priority=400)
    app.connect("doctree-resolved", point_at_pages)
    app.connect("html-collect-pages", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
