"""Diagrams in Mermaid's language are shown as pictures that were drawn from them beforehand.

A code host draws them itself. This site has no script do it: `tools/diagrams.py` draws into
docs/diagrams what has changed, each picture named by the digest of its source.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata


def picture_of(source: str) -> str:
    """Return the name of the picture of a diagram."""
    return f"{hashlib.sha256(source.strip().encode()).hexdigest()[:16]}.svg"


class Mermaid(SphinxDirective):
    """The directive that a fence of the language mermaid becomes."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture; that it is missing is a warning, and the source is shown."""
        source = "\n".join(self.content)
        folder = Path(__file__).parents[1] / "diagrams"
        name = picture_of(source)
        if not (folder / name).is_file():
            message = "This diagram has no picture. Draw it: python -m tools.diagrams"
            warning = self.state.document.reporter.warning(message, line=self.lineno)
            return [warning, nodes.literal_block(source, source)]
        picture = nodes.image(uri=f"/docs/diagrams/{name}", alt=source)
        return [nodes.container("", picture, classes=["diagram"])]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("mermaid", Mermaid)
    app.config.myst_fence_as_directive = {"mermaid"}
    return {"parallel_read_safe": True, "parallel_write_safe": True}
