"""The documentation site: `make docs` builds it into build/docs, without a network.

Its sources are the Markdown files of the whole repository, where they are: a link between them is
the same here, on a code host and in an editor. What the site adds is in `docs/extensions`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the package, and the extensions

from ray_imuckpt import __version__

_PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
author = _PROJECT["authors"][0]["name"]
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/*.md"]
exclude_patterns = [".venv", "build", "dist", ".*"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "extensions.contents",
    "extensions.diagrams",
    "extensions.signatures",
    "extensions.sources",
]

myst_heading_anchors = 4  # named as on GitHub, to which links in the documents are written
default_role = "code"  # single backticks in docstrings

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A name of ours that leads nowhere is a warning, and so ends the build. Names of other libraries
# are not looked up: that would take a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!ray_imuckpt\.).+\..+"),  # with a dot: torch.nn.Module, collections.abc.Mapping
    ("py:class", r"(ray_imuckpt\..+\.)?(Model|Optimizer)T"),  # what a caller passes comes back
    # What a user may say to continue from: the docstring of Checkpointer lists it.
    ("py:class", r"(ray_imuckpt\.source\.)?(ContinueFrom|RayCheckpoint)"),
]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options: dict[str, object] = {"source_edit_link": None, "top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"  # of a transcript the commands alone
