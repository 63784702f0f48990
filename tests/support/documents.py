"""The code blocks of a document, and a process that runs them in their order.

What a block is, its fence says:

- ``python``: run in one namespace with the others of its document. With ``title="train.py"``
  behind it, it is written to that file instead.
- ``console``: a transcript. Lines that begin with ``$ `` are run by a shell, what follows each is
  its output; times, sizes and ids may differ. The working directory is called ``/home/me``.
- ``sh``: run, whatever it prints.

An HTML comment on the line above may say ``not run: <why>``, or ``slow: <why>``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|slow): (?P<why>[^\n]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[\w.]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_RUN = frozenset({"console", "python", "sh"})
_NOT_THE_SAME_TWICE = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*", "<time>"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", "<id>"),
    (r"\b[\d.]+ (B|kB|MB|GB|s|min|h)\b", "<size>"),
    (r"[ \t]+", " "),
    (r" $", ""),
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: What its fence says.
        title: The file it is written to, if any.
        text: The code, without indentation.
        line: The line of the document above its first one, counted from 1.
        mark: ``not run``, ``slow``, or nothing.
        why: The reason of the mark.
    """

    language: str
    title: str | None
    text: str
    line: int
    mark: str | None
    why: str | None


def blocks(document: Path) -> list[Block]:
    """Return the blocks of `document` that are to be run, those with a mark too."""
    source = document.read_text()
    return [
        Block(
            match["language"],
            match["title"],
            textwrap.dedent(match["text"]),
            source.count("\n", 0, match.start("text")),
            match["mark"],
            match["why"],
        )
        for match in _FENCE.finditer(source)
        if match["language"] in _RUN
    ]


def run(document: Path, chosen: list[Block], cwd: Path, seconds: float) -> None:
    """Run `chosen` blocks in a process of their own, in the directory `cwd`.

    Raises:
        AssertionError: A block fails, or prints something else than the document says.
        subprocess.TimeoutExpired: They take longer than so many seconds.
    """
    root = Path(__file__).parents[2]
    found = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, __file__, str(document), json.dumps([asdict(b) for b in chosen])],
        cwd=cwd,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(found),
            "PYTHONUNBUFFERED": "1",  # output and errors in their order, as on a terminal
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert result.returncode == 0, result.stdout


def same(text: str) -> str:
    """Return `text` with all that differs from one run to the next replaced."""
    for pattern, replacement in _NOT_THE_SAME_TWICE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text.strip()


def _shell(command: str) -> str:
    result = subprocess.run(
        f"set -e\n{command}",
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"$ {command}\n{result.stdout}"
    return result.stdout


def _transcript(text: str) -> None:
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        printed = _shell(command).replace(os.getcwd(), "/home/me")
        assert same(printed) == same(expected), f"$ {command}\n{printed}"


def _main(document: str, chosen: str) -> None:
    names = {"__name__": "__main__"}
    for block in (Block(**fields) for fields in json.loads(chosen)):
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "console":
            _transcript(block.text)
        elif block.language == "sh":
            _shell(block.text)
        else:  # so that a traceback shows the line of the document
            exec(compile("\n" * block.line + block.text, document, "exec"), names)


if __name__ == "__main__":
    _main(*sys.argv[1:])
