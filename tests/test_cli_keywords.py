"""What `imuckpt show` and `diff` tell of hyperparameters and of all else passed by keyword."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.storage.local import LocalStorage


class Average:
    """An object with a state, of a tensor."""

    def state_dict(self) -> dict[str, Any]:
        """Return it."""
        return {"mean": torch.ones(3)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""


ARGS = {"rate": 0.1, "data": {"root": "/x", "flip": True}, "none": None, "nan": float("nan")}


OTHERS: dict[str, dict[str, Any]] = {
    "a": {"args": ARGS, "name": "\x1b[2J" + 300 * "x", "average": Average(), "seed": 1},
    "b": {
        "args": {**ARGS, "rate": 0.01, "data": {"root": "/y", "flip": 1}, "none": 0},
        "seed": 1,
        "table": torch.zeros(2, 3),
        "steps": [*range(100_000)],
        "labels": {1: "one"},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one checkpoint each."""
    directory = tmp_path_factory.mktemp("runs")
    for run, others in OTHERS.items():
        with Checkpointer(directory / run) as checkpointer:
            checkpointer.checkpoint(1, model=nn.Linear(2, 2), **others)
    return directory


def test_show_tells_each_value_in_a_line(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a dict each by itself, a long one shortened to the width, an object by its class."""
    assert main(["show", str(made / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("other      value") + 1
    assert lines[first : first + 4] == [
        "args.rate  0.1",
        "args.data  {'root': '/x', 'flip': True}",
        "args.none  None",
        "args.nan   nan",
    ]
    assert lines[first + 4].startswith("name       '\\x1b[2Jxxx")
    assert len(lines[first + 4]) == 120
    assert lines[first + 5 :] == ["average    state of Average", "seed       1"]
    assert main(["show", str(made / "b")]) == 0
    out = capsys.readouterr().out
    assert "\ntable      float32 (2, 3)\n" in out
    assert "\nlabels     {1: 'one'}\n" in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["show", str(made / "a")]) == 0
    name = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("name "))
    assert len(name) == 50
    assert name.endswith("xxx…")


def test_show_gives_a_program_the_values_whole(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under `values`; the classes of objects are under `objects`, and all names under `other`."""
    assert main(["show", str(made / "a"), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert parts["values"] == {
        "args": {**ARGS, "nan": "nan"},
        "name": "\x1b[2J" + 300 * "x",
        "seed": 1,
    }
    assert parts["objects"] == {"average": "Average"}
    assert parts["other"] == ["args", "name", "average", "seed"]
    assert main(["show", str(made / "b"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["parts"]["values"]
    assert values["steps"] == [*range(100_000)]
    assert values["table"] == "float32 (2, 3)"


def test_diff_tells_which_values_differ(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by itself, however deep in dicts; a value that is None is not one that is missing."""
    assert main(["diff", str(made / "a"), "1", str(made / "b"), "1"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  other")]
    assert lines[:4] == [
        "  other args.data.flip: True became 1",
        "  other args.data.root: '/x' became '/y'",
        "  other args.none: None became 0",
        "  other args.rate: 0.1 became 0.01",
    ]
    told = [line.partition(": ")[0::2] for line in lines[4:]]
    assert told[0] == ("  other average", "only in the first: state of Average")
    assert told[1] == ("  other labels", "only in the second: {1: 'one'}")
    assert [name for name, _ in told[2:]] == ["  other name", "  other steps", "  other table"]
    assert max(map(len, lines)) == 120
    assert main(["diff", str(made / "a"), "1", str(made / "b"), "1", "--json"]) == 1
    other = {row.pop("name"): row for row in json.loads(capsys.readouterr().out)["other"]}
    assert other["args.none"] == {"first": None, "second": 0, "only": ""}
    assert other["average"] == {"first": "state of Average", "second": None, "only": "first"}
    assert other["steps"] == {"first": None, "second": [*range(100_000)], "only": "second"}


def test_tensors_passed_by_keyword_are_not_read(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be as large as the model: headers and trees tell what `show` and `diff` tell."""
    seen = []
    real = LocalStorage.read_into

    def read_into(self: LocalStorage, name: str, offset: int, *rest: Any) -> None:
        seen.append(name)
        real(self, name, offset, *rest)

    with Checkpointer(made / "large") as checkpointer:
        table = torch.zeros(5 * 1024 * 1024)
        for epoch in (1, 2):
            checkpointer.checkpoint(epoch, model=nn.Linear(2, 2), table=table)
    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    assert main(["show", str(made / "large")]) == 0
    assert main(["diff", str(made / "large"), "1", "2"]) == 1
    assert "table  float32 (5242880,)" in capsys.readouterr().out
    states = [name for name in seen if name.startswith("state-") and name.endswith(".safetensors")]
    assert len(states) == 3, "of each the chunk that has its header"
