"""The states that a crash at any moment of a recorded story leaves. Touches os to lay them out."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from support.disk.model import Change, File, FileSystem, Tree
from support.disk.operations import Operation, Write
from support.disk.recording import Mark, Recorder


@dataclass(frozen=True)
class CrashState:
    """What is on disk after a crash.

    Attributes:
        kind: ``"killed"``, ``"torn write"`` or ``"power loss"``.
        tree: What is there.
        expectation: The number of the one that holds at this moment of the story.
        where: For the report of a fault.
    """

    kind: str
    tree: Tree
    expectation: int
    where: str

    def key(self) -> bytes:
        """Return what two states share only if one test of the two is enough."""
        digest = hashlib.blake2b(str(self.expectation).encode())
        _digest(self.tree, digest.update)
        return digest.digest()


def killed(story: Recorder) -> Iterator[CrashState]:
    """Yield what is left when the process is killed: before each operation, and within writes."""
    system, expectation = FileSystem(story.before), 0
    for number, step in enumerate(story.log):
        if isinstance(step, Mark):
            expectation = step.expectation
            continue
        where = f"operation {number}, {_short(step)}"
        yield CrashState("killed", system.seen(), expectation, f"before {where}")
        if isinstance(step, Write):
            file = system.files[step.number]
            before, size = file.volatile, len(step.data)
            for length in sorted({1, size // 3, size // 2, size - 1} - {0, size}):
                step.torn(length).apply(system)
                told = f"{length} of {size} bytes into {where}"
                yield CrashState("torn write", system.seen(), expectation, told)
                file.volatile = before
        step.apply(system)
    yield CrashState("killed", system.seen(), expectation, "after the end")


def power_lost(
    story: Recorder,
    draw: random.Random,
    *,
    most: int,
    share: float = 1.0,
    share_at_marks: float = 1.0,
) -> Iterator[CrashState]:
    """Yield what is left when the power goes after each operation.

    Args:
        story: What was recorded.
        draw: Chooses.
        most: How many subsets of the changes that are not durable are tried after each operation.
        share: What share of the states to yield.
        share_at_marks: The same for the moments at which a call begins or has ended.
    """
    system, expectation = FileSystem(story.before), 0
    for number, step in enumerate(story.log):
        if isinstance(step, Mark):
            expectation, part = step.expectation, share_at_marks
        else:
            part = share
            step.apply(system)
        unsynced = system.unsynced()
        for arrived in _subsets(system.pending(), draw, most):
            for name, content in _CONTENTS.items():
                if (name == "as synced" or unsynced) and draw.random() < part:
                    tree = system.after_power_loss(arrived, content)
                    told = f"after operation {number}, {_short(step)}, unsynced bytes {name}, "
                    told += f"{len(arrived)} of {len(system.pending())} unsynced names"
                    yield CrashState("power loss", tree, expectation, told)


def lay_out(tree: Tree, directory: str) -> None:
    """Make a state real, in a directory that does not exist yet."""
    names: dict[int, str] = {}

    def make(tree: Tree, path: str) -> None:
        os.mkdir(path)
        for name, node in tree.items():
            target = f"{path}/{name}"
            if isinstance(node, dict):
                make(node, target)
            elif node[0] in names:
                os.link(names[node[0]], target)
            else:
                names[node[0]] = target
                with open(target, "wb") as file:
                    file.write(node[1])

    make(tree, directory)


def _half(file: File) -> bytes:
    return file.volatile[: len(file.volatile) // 2]


_CONTENTS: dict[str, Callable[[File], bytes]] = {
    "as synced": lambda file: file.durable,
    "as zeros": lambda f: f.volatile if f.volatile == f.durable else bytes(len(f.volatile)),
    "half": lambda file: file.volatile if file.volatile == file.durable else _half(file),
    "all": lambda file: file.volatile,
}


def _subsets(pending: list[Change], draw: random.Random, most: int) -> list[frozenset[Change]]:
    """All subsets, or the telling ones (none, all, all up to one, one, all but one) and others."""
    count = len(pending)
    if 2**count <= most:
        return [
            frozenset(change for place, change in enumerate(pending) if chosen >> place & 1)
            for chosen in range(2**count)
        ]
    found = [frozenset[Change](), frozenset(pending)]
    for place in range(count):
        found += [
            frozenset(pending[:place]),
            frozenset(pending[place:]),
            frozenset([pending[place]]),
            frozenset(pending[:place] + pending[place + 1 :]),
        ]
    while len(found) < most:
        found.append(frozenset(change for change in pending if draw.random() < 0.5))
    return found[:2] + draw.sample(found[2:], most - 2)


def _short(step: Operation | Mark) -> str:
    text = str(step)
    return text if len(text) < 120 else text[:119] + "…"


def _digest(tree: Tree, update: Callable[[bytes], None]) -> None:
    for name in sorted(tree):
        node = tree[name]
        update(f"/{name}\0".encode())
        if isinstance(node, dict):
            update(b"{")
            _digest(node, update)
            update(b"}")
        else:
            update(b"%d:%d:" % (node[0], len(node[1])) + node[1])
