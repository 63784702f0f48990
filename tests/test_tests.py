"""The house rules of the tests themselves. Each check is tried on code that breaks it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import HERE
from support.processes import BLOCKS_WITH_RAY, RAY, group_of

FILES = {path.relative_to(HERE).as_posix(): path for path in sorted(HERE.rglob("*.py"))}
PACKAGES = sorted(path.parent for path in HERE.rglob("__init__.py"))

MAX_LINES = 300


def functions_of(source: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


def undocumented(source: str) -> list[str]:
    """Return the names of the tests that do not say in one line what they promise."""
    found = []
    for test in functions_of(source):
        promise = ast.get_docstring(test) or ""
        if not promise or "\n" in promise:
            found.append(test.name)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_tests_is_about_one_thing(name: str) -> None:
    """It has a docstring that says which, and fewer than 300 lines."""
    source = FILES[name].read_text()
    assert len(source.splitlines()) < MAX_LINES
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", FILES)
def test_a_test_says_in_one_line_what_it_promises(name: str) -> None:
    """A name says what happens; the line below it, what that is good for."""
    assert undocumented(FILES[name].read_text()) == []


def test_no_test_is_there_twice() -> None:
    """Of two tests of one name in one file, pytest runs the second only."""
    for path in FILES.values():
        names = [test.name for test in functions_of(path.read_text())]
        assert sorted(set(names)) == sorted(names), path


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_support_is_ordered_by_role(package: Path) -> None:
    """Each package says what role its modules play."""
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "def test_a():\n    pass",
        'def test_a():\n    """Two\n\n    paragraphs."""',
        'class TestA:\n    def test_a(self):\n        """"""',
    ],
)
def test_the_check_finds_a_test_without_a_promise(source: str) -> None:
    """None, a long one, an empty one; in a class too."""
    assert undocumented(source) == ["test_a"]


def test_the_check_lets_helpers_be() -> None:
    """What does not begin with test_ promises nothing."""
    assert undocumented('def test_a():\n    """It works."""\ndef helper():\n    pass') == []


def test_what_starts_ray_is_known_to_what_deals_the_tests() -> None:
    """A cluster, an example of Ray, slow blocks: one process runs them all, two would starve."""
    on_a_cluster = [
        f"tests/{name}::{function.name}"
        for name, path in FILES.items()
        if name.startswith("test_")
        for function in functions_of(path.read_text())
        if any("usefixtures('cluster'" in ast.unparse(mark) for mark in function.decorator_list)
    ]
    assert len(on_a_cluster) >= 10
    assert [node for node in on_a_cluster if group_of(node) != RAY] == []
    examples = functions_of((HERE / "test_examples.py").read_text())
    with_ray = [f.name for f in examples if "run_smoke('ray_" in ast.unparse(f)]
    assert len(with_ray) == 3
    for name in with_ray:
        assert group_of(f"tests/test_examples.py::{name}") == RAY
    assert f"def {BLOCKS_WITH_RAY}(" in (HERE / "test_documents.py").read_text()
    for other in ("test_examples.py::test_quickstart", "test_ray_driver.py::test_a", "test_cli.py"):
        assert group_of(f"tests/{other}") == f"tests/{other}".partition("::")[0]
