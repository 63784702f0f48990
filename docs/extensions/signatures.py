"""Defaults in signatures are shown as values: 1800.0 for a constant, ``...`` for what is private.

Sphinx shows them as they are written in the source (`autodoc_preserve_defaults`), and where a
constant stands there, that is its name.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

_NAME = re.compile(r"(?<== )(?!None\b|True\b|False\b)[A-Za-z_][\w.]*(?=[,)])")


def with_values(
    _app: Sphinx, _what: str, _name: str, obj: Any, _options: Any, signature: Any, returned: Any
) -> tuple[str | None, str | None]:
    """Return a signature with the values of constants in place of their names."""
    module: Any = sys.modules.get(getattr(obj, "__module__", None) or "")

    def value(match: re.Match[str]) -> str:
        found = functools.reduce(getattr, match[0].split("."), module)
        return repr(found) if isinstance(found, str | int | float) else match[0]

    return _NAME.sub(value, signature or "") or None, returned


def without_private(_app: Sphinx, _domain: str, _kind: str, content: nodes.Element) -> None:
    """Show three dots where a default is a private name, in signatures of overloads too."""
    for node in content.parent.findall(nodes.inline):
        if "default_value" in node["classes"] and node.astext().startswith("_"):
            node.clear()
            node.append(nodes.Text("..."))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect both."""
    app.connect("autodoc-process-signature", with_values)
    app.connect("object-description-transform", without_private)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
