"""What the adapters touch of their frameworks in private: listed, and missed when it is gone."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import HERE
from ray_imuckpt import ImuckptError
from ray_imuckpt.integrations import versions
from ray_imuckpt.integrations.lightning_loops import TrainingLoops

ROOM = HERE.parent / "ray_imuckpt" / "integrations"
OURS = {"_training", "_asdict"}  # of a callback of ours, of every named tuple
LOGGED = {"_runtime", "_per_second"}  # in the keys of a log


def privates(path: Path) -> set[str]:
    """Return the private names that a file reads, sets, calls or overrides on what is not its own.

    What a class calls ``self._name`` is its own, but in a mixin, which a framework calls.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                found.add(node.attr)
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Mixin"):
            found |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if re.fullmatch(r"_[A-Za-z]\w+", node.value) else set()
    return {name for name in found if re.match(r"_[A-Za-z]", name)} - OURS - LOGGED


def test_each_private_name_is_in_the_list() -> None:
    """With what it is for, and what fails when it is gone or means something else."""
    page = (HERE.parent / "docs" / "versions.md").read_text()
    listed = page.partition("## What is private")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(_[A-Za-z]\w+)`", listed))
    assert set().union(*map(privates, ROOM.glob("*.py"))) == named


def test_a_loop_without_what_is_set_in_it_is_refused() -> None:
    """Nobody would miss what is only set, and the run would be another one."""
    current = SimpleNamespace(processed=0, ready=0)
    progress = SimpleNamespace(current=current)
    epoch = SimpleNamespace(_results={}, batch_progress=progress, restarting=False)
    loop: dict[str, Any] = {"_combined_loader": None, "_data_fetcher": None, "_restarting": False}
    loop |= {"_resuming_from_checkpoint": False, "epoch_loop": epoch, "epoch_progress": progress}
    assert TrainingLoops(SimpleNamespace(fit_loop=SimpleNamespace(**loop))).epochs == 0
    for name in loop:
        others = {key: value for key, value in loop.items() if key != name}
        with pytest.raises(ImuckptError, match=f"Trainer.fit_loop has no {name}") as caught:
            TrainingLoops(SimpleNamespace(fit_loop=SimpleNamespace(**others)))
        assert "docs/versions.md" in str(caught.value)
    del current.ready
    with pytest.raises(ImuckptError, match="progress has no ready"):
        TrainingLoops(SimpleNamespace(fit_loop=SimpleNamespace(**loop)))


def test_a_method_that_is_called_otherwise_is_refused() -> None:
    """More parameters behind those that are known are none of our business."""

    class Trainer:
        def known(self, epoch: int, loader: object, more: int = 0) -> None:
            """Run an epoch."""

    parameters = inspect.signature(Trainer.known).parameters
    versions.check_parameters("transformers", "known", parameters, ("epoch", "loader"))
    with pytest.raises(ImuckptError, match=r"takes \(epoch, loader, more\), not \(loader\)"):
        versions.check_parameters("transformers", "known", parameters, ("loader",))
