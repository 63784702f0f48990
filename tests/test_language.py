"""The language of the package: docstrings say what a function does, names what a thing is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ray_imuckpt

PACKAGE = Path(ray_imuckpt.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# No docstring begins with one of these: it would be half a sentence.
QUESTIONS = {"what", "whether", "where", "see", "how", "why", "who", "whom", "when", "which"}
# One of a function begins with a verb in its base form, and so with none of these either.
NO_VERBS = QUESTIONS | {
    "a", "about", "after", "all", "an", "and", "another", "any", "as", "at", "before", "both", "by",
    "every", "each", "for", "from", "in", "it", "its", "nothing", "of", "on", "one", "only", "ours",
    "out", "same", "some", "such", "that", "the", "their", "these", "this", "those", "to", "two",
    "with", "within", "without",
}  # fmt: skip

# Participles and possessives that only the sentence around them explains.
RIDDLES = {
    "asked", "found", "given", "handed", "kept", "mine", "own", "place", "places", "theirs", "told",
}  # fmt: skip
MOST_LINES = 3  # of the life of a local variable that has such a name

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def first_word(text: str) -> str:
    """Return the first word of a docstring, in small letters."""
    return text.split(maxsplit=1)[0].strip("`*.,:;()\"'").lower()


def openings(tree: ast.Module) -> Iterator[str]:
    """Yield what is wrong with the first words of docstrings."""
    for node in ast.walk(tree):
        if not isinstance(node, Documented):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        word = first_word(text)
        if word in (NO_VERBS if function else QUESTIONS):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield f"line {line}: a docstring begins with {word!r}"


def lasting_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of all that is not a local variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        if isinstance(node, ast.arguments):
            for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs):
                yield argument.lineno, argument.arg
        if isinstance(node, ast.Module | ast.ClassDef):
            fields = [target for statement in node.body for target in targets(statement)]
            yield from ((name.lineno, name.id) for name in fields if isinstance(name, ast.Name))
        attributes = [target for target in targets(node) if isinstance(target, ast.Attribute)]
        yield from ((attribute.lineno, attribute.attr) for attribute in attributes)


def targets(node: ast.AST) -> list[ast.expr]:
    """Return what a statement assigns to, tuples taken apart."""
    if isinstance(node, ast.Assign):
        assigned = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        assigned = [node.target]
    else:
        assigned = []
    return [
        part
        for target in assigned
        for part in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])
    ]


def long_lives(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of local variables that live for more than a few lines."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Name):
                last[node.id] = max(node.lineno, last.get(node.id, 0))
                if isinstance(node.ctx, ast.Store):
                    first[node.id] = min(node.lineno, first.get(node.id, node.lineno))
        yield from ((at, name) for name, at in first.items() if last[name] - at > MOST_LINES)


def complaints(source: str) -> list[str]:
    """Return what is wrong with the language of a file."""
    tree = ast.parse(source)
    names = [
        f"line {line}: the name {name!r}"
        for line, name in (*lasting_names(tree), *long_lives(tree))
        if name.strip("_").lower() in RIDDLES
    ]
    return [*openings(tree), *names]


@pytest.mark.parametrize("name", FILES)
def test_docstrings_say_what_is_done_and_names_what_a_thing_is(name: str) -> None:
    """Whoever reads a docstring or a name needs no sentence around it."""
    assert complaints(FILES[name].read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What is saved."""',
        'class A:\n    """See `B`."""',
        'def f():\n    """The rate."""',
        'def f():\n    """`Whether` it runs."""',
        "def f(told): ...",
        "def f(*, place=None): ...",
        "def handed(): ...",
        "_FOUND = 1",
        "class A:\n    kept: int = 1",
        "class A:\n    def f(self):\n        self._own, self.b = 1, 2",
        "def f():\n    found = 1\n\n\n\n    return found",
    ],
)
def test_the_check_finds_halves_of_sentences(source: str) -> None:
    """Each rule is tried on code that breaks it."""
    assert len(complaints(source)) == 1


def test_the_check_leaves_whole_ones_and_short_lives_alone() -> None:
    """A local variable of a few lines may have any name, and a class may begin with its article."""
    method = 'def f(self):\n        """Return it."""\n        told = 1'
    source = f'class A:\n    """The rate."""\n    {method}'
    assert complaints(source) == []


def undocumented(public: Callable[..., object]) -> list[str]:
    """Return the arguments that no docstring has, of a function or of a class with its calls."""
    calls = [public]
    if inspect.isclass(public):
        members = [*inspect.getmembers(public, inspect.isfunction)]
        members += inspect.getmembers(public, inspect.ismethod)  # of the class itself
        calls += [call for name, call in members if not name.startswith("_")]
    return [
        f"{call.__qualname__}: {argument}"
        for call in calls
        for argument in inspect.signature(call).parameters
        if argument != "self" and not re.search(rf"\b{argument}\b", documentation(call))
    ]


def documentation(call: Callable[..., object]) -> str:
    """Return a docstring, of a class with those of its bases: an error's arguments are of these."""
    documented = call.__mro__ if inspect.isclass(call) else (call,)
    return "\n".join(one.__doc__ or "" for one in documented)


SHOWN = re.compile(r"auto(?:class|function|exception):: ray_imuckpt\.(\w+)$", re.MULTILINE)
CALLED = SHOWN.findall((PACKAGE.parent / "docs" / "api.md").read_text())


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_that_a_user_may_give_is_explained(name: str) -> None:
    """In the reference; what the package alone makes stands there without arguments."""
    assert undocumented(getattr(ray_imuckpt, name)) == []


def test_an_argument_that_is_not_explained_is_noticed() -> None:
    """Of a function, of a class and of its calls."""

    class Unsaid:
        """Hold `a`."""

        def __init__(self, a: int, b: int) -> None: ...

        def call(self, c: int) -> None:
            """Call."""

    assert [text[-4:] for text in undocumented(Unsaid)] == ["d: b", "l: c"]
