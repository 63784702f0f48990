"""The documents speak of files that exist, and their code runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import scale, sizing
from support.documents import Block, blocks, run, same
from support.programs import HANGS

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for path in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    )
}
BLOCKS = {name: blocks(path) for name, path in DOCUMENTS.items()}


def with_block(mark: str | None) -> list[str]:
    """Return the documents that have a block with that mark."""
    return [name for name, found in BLOCKS.items() if any(b.mark == mark for b in found)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    """A link to a file has a file, a link to a heading has a heading."""
    path = DOCUMENTS[name]
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (heading and heading not in anchors(target)):
            lost.append(link)
    assert lost == []


def anchors(document: Path) -> set[str]:
    """Return the names under which GitHub links to the headings of `document`."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("name", with_block(None))
def test_the_code_of_a_document_runs(name: str, tmp_path: Path) -> None:
    """Whoever copies the blocks of a page, one after the other, gets what it says."""
    run(DOCUMENTS[name], [b for b in BLOCKS[name] if b.mark is None], tmp_path, seconds=HANGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_block("slow"))
def test_the_code_of_a_document_runs_with_what_takes_long(name: str, tmp_path: Path) -> None:
    """As above, with the blocks that start a cluster."""
    run(DOCUMENTS[name], [b for b in BLOCKS[name] if b.mark != "not run"], tmp_path, seconds=HANGS)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    """What is not run here may be wrong: there are two, and they install packages."""
    found = {name: [b.why for b in BLOCKS[name] if b.mark == "not run"] for name in DOCUMENTS}
    assert {name: len(why) for name, why in found.items() if why} == {
        "README.md": 1,
        "docs/versions.md": 1,
    }


def test_a_block_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    """Each kind of block is tried on code that breaks it."""
    document = tmp_path / "page.md"
    pages = {
        "```python\nx = 1\n```\n```python\nassert x == 2\n```\n": "AssertionError",
        "```console\n$ echo one\ntwo\n```\n": "one",
        "```console\n$ false\n```\n": "false",
        "```sh\nexit 3\n```\n": "exit 3",
        '```python title="a.py"\nprint(1)\n```\n```console\n$ python a.py\n2\n```\n': "a.py",
    }
    for page, told in pages.items():
        document.write_text(page)
        with pytest.raises(AssertionError, match=told):
            run(document, blocks(document), tmp_path, seconds=HANGS)


def test_only_times_sizes_and_ids_may_differ() -> None:
    """Two lines of `imuckpt ls` from two runs are the same; another epoch is not."""
    line = "     5  2026-11-25 09:20:14    20.2 kB  ce4ae27c  loss=0.5  \n"
    other = "     5  2027-01-02 19:00:01   110.0 kB  92748d06  loss=0.5\n"
    assert same(line) == same(other)
    assert same(line) != same(other.replace("5  2027", "6  2027"))
    assert same(line) != same(other.replace("0.5", "0.25"))


def test_the_readme_is_read_in_one_screen() -> None:
    """The first page says what it is, shows it, and links to the rest."""
    assert len(DOCUMENTS["README.md"].read_text().splitlines()) <= 115
    script: Block = next(b for b in BLOCKS["README.md"] if b.title == "train.py")
    assert "ray." not in script.text


def test_each_guarantee_in_the_readme_links_to_its_test() -> None:
    """A guarantee without a test is a wish."""
    section = DOCUMENTS["README.md"].read_text().split("## Guarantees")[1].split("##")[0]
    rows = [
        line for line in section.splitlines() if line.startswith("| ") and "shown by" not in line
    ]
    assert len(rows) >= 10
    assert [row for row in rows if "](tests/test_" not in row] == []


def test_every_decision_is_in_the_index_with_its_title_and_status() -> None:
    """Numbers are unique and without gaps; the index says of each decision what its page says."""
    rows, numbers = [], []
    for page in sorted((ROOT / "docs" / "adr").glob("0*.md")):
        text = page.read_text()
        heading = re.match(r"# (\d+)\. (.+)\n", text)
        status = re.search(r"^\*\*Status\.\*\* (.+)\.$", text, re.MULTILINE)
        assert heading, page.name
        assert status, f"{page.name} has no status"
        assert page.name.startswith(f"{int(heading[1]):04}-"), page.name
        numbers.append(int(heading[1]))
        rows.append(f"| [{heading[1]}]({page.name}) | {heading[2]} | {status[1]} | ")
    assert numbers == list(range(1, len(numbers) + 1))
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    listed = [line for line in index.splitlines() if line.startswith("| [")]
    assert len(listed) == len(rows)
    assert [row for row, line in zip(rows, listed, strict=True) if not line.startswith(row)] == []


def test_every_page_is_in_the_index_of_the_documents() -> None:
    """Who looks for a page finds it by what it is for."""
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


@pytest.mark.parametrize(("name", "calculation"), [("scale", scale), ("cluster", sizing)])
def test_the_tables_of_a_page_are_those_that_are_calculated(
    name: str, calculation: ModuleType
) -> None:
    """Nobody has typed a figure of them."""
    assert "\n".join(calculation.tables()) in (ROOT / "docs" / f"{name}.md").read_text()


def test_every_failure_mode_is_shown_by_tests_that_exist() -> None:
    """Each row of the tables names at least one, and none that is not there."""
    text = (ROOT / "docs" / "failure-modes.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 25
    faults = text.split("## How often")[0].splitlines()
    table = [line for line in faults if line.startswith("| ") and not line.startswith("| fault")]
    assert [row for row in table if "::test_" not in row] == []
    sources = {path.name: path.read_text() for path in ROOT.glob("tests/**/*.py")}
    named = re.findall(r"`(\w+\.py)::(\w+)`", text)
    assert [n for n in named if f"def {n[1]}(" not in sources.get(n[0], "")] == []


def test_the_rooms_of_the_architecture_are_those_of_the_import_contracts() -> None:
    """In the same order: what stands above may import what stands below."""
    layers = (ROOT / "pyproject.toml").read_text().split("\nlayers = [\n")[1].split("\n]")[0]
    enforced = [re.findall(r"\w+", line) for line in layers.splitlines()]
    table = DOCUMENTS["docs/architecture.md"].read_text().split("## Rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [re.findall(r"\w+", row) for row in rows]
    assert [["__main__"], *listed] == enforced
