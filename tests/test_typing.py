"""What a type checker says to those who use the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.documents import blocks

ROOT = Path(__file__).parents[1]
UNTYPED = {"manual_seed", "step"}
"""What torch leaves without annotations, of all that the loops call."""
WRONG = """\
import torch
from ray_imuckpt import Checkpointer

model = torch.nn.Linear(1, 1)
started = Checkpointer("a").start(model, torch.optim.AdamW(model.parameters()))
stepper: torch.optim.SGD = started.optimizer
Checkpointer("a", save_every="5")
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The code of README, each block a program, and of the guide, whose blocks go on and on."""
    directory = tmp_path_factory.mktemp("programs")
    readme, guide = (
        [block.text for block in blocks(ROOT / name) if block.language == "python"]
        for name in ("README.md", "docs/guide.md")
    )
    result: list[Path] = []
    for text in [*readme, "\n".join(guide)]:
        result.append(directory / f"page_{len(result)}.py")
        result[-1].write_text(text)
    assert len(result) == 3
    return result


def test_mypy_accepts_the_loops_in_strict_mode(programs: list[Path]) -> None:
    """Whoever copies them into a project that is checked by ``mypy --strict`` changes nothing."""
    checked = subprocess.run(  # with the cache of `make lint` it takes seconds
        [sys.executable, "-m", "mypy", "--no-error-summary", *programs],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (checked.stdout, checked.stderr) == ("", "")


@pytest.fixture(scope="module")
def told(programs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """What pyright says of each program; with JSON it asks no one for its newest version."""
    if not shutil.which("node"):
        pytest.skip("pyright needs node")
    loops = [program.with_name(f"strict_{program.name}") for program in programs[:2]]
    for loop, program in zip(loops, programs, strict=False):
        loop.write_text(f"# pyright: strict\n{program.read_text()}")
    wrong = loops[0].with_name("wrong.py")
    wrong.write_text(WRONG)
    files = [*loops, wrong, ROOT / "tests" / "typing" / "api.py"]
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *files],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answer = json.loads(checked.stdout)
    assert answer["summary"]["filesAnalyzed"] == len(files)
    errors = [each for each in answer["generalDiagnostics"] if each["severity"] == "error"]
    return {str(file): [e for e in errors if e["file"] == str(file)] for file in files}


@pytest.mark.slow
def test_pyright_accepts_the_loops_in_strict_mode(told: dict[str, list[dict[str, Any]]]) -> None:
    """But for functions of torch that have no annotations: all that is ours is known to it."""
    errors = [each for file, found in told.items() if "strict_" in file for each in found]
    assert {(each["rule"], each["message"].split('"')[1]) for each in errors} <= {
        ("reportUnknownMemberType", name) for name in UNTYPED
    }


@pytest.mark.slow
def test_pyright_infers_the_types_that_mypy_does(told: dict[str, list[dict[str, Any]]]) -> None:
    """`start` and `load` are generic in the model and the optimizer; a wrong type is an error."""
    found = {Path(file).name: [e["range"]["start"]["line"] for e in told[file]] for file in told}
    assert found["api.py"] == []
    assert found["wrong.py"] == [5, 6]
