"""Draws the diagrams of the documents, for the site: docs/extensions/diagrams.py shows them.

    python -m tools.diagrams

A diagram is a fence of the language mermaid. Those that have changed are drawn by Mermaid itself,
in Chromium (`apt-get install chromium`; Mermaid comes from npm); pictures of none are deleted.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "diagrams"
MERMAID = "mermaid@11.17.2"
_PAGE = """<!doctype html><meta charset="utf-8"><body><div id="drawn"></div>
<script src="{script}"></script><script>
const font = "Arial, Helvetica, sans-serif";
mermaid.initialize({{startOnLoad: false, theme: "neutral", deterministicIds: true, fontFamily: font,
  themeVariables: {{noteBkgColor: "#fff8d6", noteTextColor: "#222", noteBorderColor: "#b9a44c"}},
  sequence: {{mirrorActors: false, width: 120, actorMargin: 20, wrapPadding: 4,
    actorFontFamily: font, noteFontFamily: font, messageFontFamily: font}}}});
mermaid.render("diagram", {source}).then(
  ({{svg}}) => {{ document.body.textContent = "BEGIN" + svg + "END"; }},
  (error) => {{ document.body.textContent = "WRONG" + error + "END"; }});
</script></body>"""


def diagrams() -> list[str]:
    """Return the sources of the diagrams in all documents."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    fence = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [found for page in sorted(pages) for found in fence.findall(page.read_text())]


def draw(source: str, script: Path) -> str:
    """Return a diagram as SVG.

    Raises:
        SystemExit: Mermaid does not understand it, or Chromium is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(_PAGE.format(script=script.as_uri(), source=json.dumps(source)))
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom",
            page.as_uri(),
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(BEGIN|WRONG)(.*)END", dom, re.DOTALL)
    if found is None or found[1] == "WRONG":
        raise SystemExit(f"Mermaid: {html.unescape(found[2]) if found else dom}\n{source}")
    return html.unescape(found[2])


def main() -> None:
    """Draw what has no picture yet."""
    sys.path.insert(0, str(ROOT / "docs"))
    from extensions.diagrams import picture_of

    PICTURES.mkdir(exist_ok=True)
    sources = {picture_of(source): source for source in diagrams()}
    for picture in PICTURES.glob("*.svg"):
        if picture.name not in sources:
            picture.unlink()
            print("deleted", picture.name)
    missing = {name: source for name, source in sources.items() if not (PICTURES / name).exists()}
    if not missing:
        return
    modules = ROOT / "build" / "mermaid"
    subprocess.run(["npm", "install", "--silent", "--prefix", modules, MERMAID], check=True)
    script = modules / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
    for name, source in missing.items():
        (PICTURES / name).write_text(draw(source, script) + "\n")
        print("drawn", name)


if __name__ == "__main__":
    main()
