"""Logs and curves of runs: `imuckpt log` and `imuckpt plot`."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import curves, logs, main


def save(directory: Path, log: Any, **metrics: float) -> None:
    """A run with one checkpoint."""
    with Checkpointer(directory) as checkpointer:
        checkpointer.checkpoint(20, model=torch.nn.Linear(1, 1), log=log, metrics=metrics)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs ``a`` and ``b_b``, whose logs lack an accuracy in every second epoch."""
    directory = tmp_path_factory.mktemp("runs")
    for name, rate in (("a", 0.1), ("b_b", 0.3)):
        log = [
            {"epoch": e, "loss": math.exp(-rate * e), **({"val": {"acc": e / 20}} if e % 2 else {})}
            for e in range(1, 21)
        ]
        save(directory / name, log, loss=9.0, f1=rate)
    return directory


@pytest.mark.parametrize(
    ("log", "rows"),
    [
        ([], []),
        (None, []),
        ([0.5, 0.25], [{"value": 0.5}, {"value": 0.25}]),
        ([{"a": 1}, {"b": {"c": 2, "d": {"e": 3}}}], [{"a": 1}, {"b.c": 2, "b.d.e": 3}]),
        ([(1, 0.5), [2]], [{"0": 1, "1": 0.5}, {"0": 2}]),
        ({"a": [1, 2], "b": [3]}, [{"a": 1, "b": 3}, {"a": 2}]),
        ({"a": 1}, [{"a": 1}]),
        (["text", None], [{"value": "text"}, {"value": None}]),
    ],
)
def test_whatever_a_log_is_it_has_rows(log: Any, rows: list[dict[str, Any]]) -> None:
    """Numbers, dicts with ragged keys, nested ones, tuples, a dict of columns."""
    assert logs.rows(log) == rows


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0), (np.float32(0.5), 0.5), (torch.tensor([2.0]), 2.0), (np.array(3), 3.0),
        (True, None), ("1", None), (None, None), (math.nan, None), (math.inf, None),
        (10**400, None), (torch.ones(2), None), (np.ones(2), None), ([1], None),
    ],
)  # fmt: skip
def test_what_is_drawn_is_a_finite_number(value: Any, number: float | None) -> None:
    """Of Python, NumPy or torch; no flag, no text."""
    assert logs.number(value) == number


def test_rows_are_counted_by_what_rises(runs: Path) -> None:
    """Epochs; steps where several have one epoch; else their own number."""
    assert logs.axis([{"epoch": 1, "step": 5}, {"epoch": 2, "step": 9}]) == "epoch"
    assert logs.axis([{"epoch": 1, "step": 5}, {"epoch": 1, "step": 9}]) == "step"
    assert logs.axis([{"epoch": 1}, {"loss": 1.0}]) is None
    assert logs.axis([]) is None
    found = curves.curves([str(runs / "a")], None)
    assert [(c.metric, c.source, len(c.points)) for c in found.curves] == [
        ("loss", "log", 20),
        ("val.acc", "log", 10),
        ("f1", "metrics", 1),
    ]
    assert found.curves[1].points[1] == curves.Point(3, 0.15)


def test_the_log_is_a_table_and_csv(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its end, some columns; in CSV with every digit."""
    assert main(["log", str(runs / "a"), "--tail", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["epoch", "loss", "val.acc"], ["19", "0.149569", "0.95"], ["20", "0.135335"]]
    command = ["log", str(runs / "a"), "20", "--columns", "val.acc,loss", "--csv"]
    assert main(command) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(read) == 20
    assert float(read[-1]["loss"]) == math.exp(-2.0)
    assert read[-1]["val.acc"] == ""
    assert main(["log", str(runs / "a"), "--columns", "lr"]) == 2
    assert "it has: epoch, loss, val.acc" in capsys.readouterr().err


def test_several_runs_in_one_chart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mark for each, the range of both axes, and which mark is whose."""
    both = [str(runs / "a"), str(runs / "b_b")]
    assert main(["plot", *both, "-m", "loss"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "loss"
    assert lines[1].split()[0] == "0.9048"
    assert lines[-2:] == [f"  * {both[0]}", f"  + {both[1]}"]
    assert "epoch 1" in lines[-3]
    assert lines[-3].endswith("20")
    assert min(out.count("*"), out.count("+")) > 10
    assert main(["plot", *both, "-m", "f1,lr"]) == 0
    printed = capsys.readouterr()
    assert "0.1 |" in printed.out
    told = "has no finite numbers for lr; it has some for: loss, val.acc, f1"
    assert printed.err.count(told) == 2


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_is_written_once(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Without a display; what is there stays, and no half file does."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # of another test
    file = tmp_path / f"curves.{kind}"
    command = ["plot", str(runs / "a"), str(runs / "b_b"), "-o", str(file)]
    assert main(command) == 0
    data = file.read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        assert ET.fromstring(data).tag.endswith("svg")
        for text in (b"<!-- loss -->", b"<!-- val.acc -->", b"<!-- epoch -->", b"b_b -->"):
            assert text in data
    assert main(command) == 2
    assert "nothing is written over it" in capsys.readouterr().err
    assert file.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert "matplotlib.pyplot" not in sys.modules


def test_what_cannot_be_drawn_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to draw, another kind of file, no matplotlib, no checkpoints: status 2, no file."""
    save(tmp_path / "empty", ["a", None])
    for words, told in (
        ([str(tmp_path / "empty")], "there are none"),
        ([str(runs / "a"), "-m", "lr"], "there are: loss, val.acc, f1"),
        ([str(runs / "a"), "-o", str(tmp_path / "c.gif")], "*.png"),
        ([str(runs / "a"), "-o", str(tmp_path / "no" / "c.png")], f"no directory {tmp_path}/no\n"),
        ([str(tmp_path / "nowhere")], "no such directory"),
    ):
        assert main(["plot", *words]) == 2
        assert told in capsys.readouterr().err
    save(tmp_path / "none", [])
    assert main(["log", str(tmp_path / "none")]) == 2
    assert "empty" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", str(runs / "a"), "-o", str(tmp_path / "c.png")]) == 2
    assert "ray-imuckpt[plot]" in capsys.readouterr().err
    assert not list(tmp_path.glob("c.*"))


def test_flat_and_extreme_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One point, equal ones, the largest numbers there are."""
    top = sys.float_info.max
    save(tmp_path / "run", [{"one": 1.0, "flat": 2, "huge": v} for v in (-top, 0.0, top)])
    assert main(["plot", str(tmp_path / "run")]) == 0
    assert main(["plot", str(tmp_path / "run"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "1.798e+308 |" in out
    drawn = json.loads(out[out.index("{") :])["curves"]
    assert [curve["axis"] for curve in drawn] == ["entry"] * 3
    assert main(["plot", str(tmp_path / "run"), "-m", "flat", "-o", str(tmp_path / "c.png")]) == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["loss, f1"], ["loss", "f1"]),
        (["loss,loss", "f1"], ["loss", "f1"]),
        ([" a", "b,c", "a"], [" a", "b,c", "a"]),
        ([" a,b,c"], [" a", "b", "c"]),
        ([" lr ,"], ["lr"]),
    ],
)
def test_a_name_with_spaces_or_commas_is_meant_where_there_is_one(
    words: list[str], found: list[str]
) -> None:
    """Lists may have spaces behind their commas all the same."""
    assert logs.chosen(words, ["loss", "f1", " a", "b,c"]) == found


def test_columns_of_any_name_are_shown_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With spaces around it, a comma in it, of another script."""
    save(tmp_path / "a run", [{" verlust ": e, "größe, λ": 2.0 * e} for e in range(1, 4)])
    run = str(tmp_path / "a run")
    assert main(["log", run, "--columns", "größe, λ", "--csv"]) == 0
    assert capsys.readouterr().out == '"größe, λ"\n2.0\n4.0\n6.0\n'
    for name in (" verlust ", "größe, λ"):
        assert main(["plot", run, "-m", name]) == 0
        assert capsys.readouterr().out.splitlines()[0] == name
    assert main(["log", run, "--columns", " verlust ,größe"]) == 2
    assert "the log has no column größe; it has:  verlust , größe, λ." in capsys.readouterr().err
